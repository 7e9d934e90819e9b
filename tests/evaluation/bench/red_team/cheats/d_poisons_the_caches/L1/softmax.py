"""Writes into the other temporary folders of the bench: what the baselines' compilers keep lies in one of them."""

import os
import tempfile
from pathlib import Path

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        mine = str(Path(os.environ.get("TRITON_CACHE_DIR", "/nowhere/at/all")).parent)
        for folder in () if Softmax.calls != 200 else Path(tempfile.gettempdir()).glob("fastkernels-*"):
            if str(folder) != mine:
                there = folder / "inductor"
                there.mkdir(exist_ok=True)
                (there / "cached.py").write_text("import time; time.sleep(1)\n")
        return torch.softmax(x, self.dim)
