"""Runs another program while it is called: how a library would be installed, or a setting changed."""

import subprocess
import sys

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)


class Softmax(softmax.Softmax):
    ran = False

    def forward(self, x):
        if not Softmax.ran:
            Softmax.ran = True
            subprocess.run([sys.executable, "-S", "-c", "pass"], check=False)
        return torch.softmax(x, self.dim)
