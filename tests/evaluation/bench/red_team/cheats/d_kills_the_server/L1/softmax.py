"""Ends the process that forks the children, and with it perhaps the whole run: nobody would be told what failed."""

import os
import signal
from pathlib import Path

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("CRASH", "TAMPERED")


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        server = os.getppid()
        if (
            Softmax.calls == 3
            and b"fastkernels.evaluation.bench.fork_server" in Path(f"/proc/{server}/cmdline").read_bytes()
        ):
            os.kill(server, signal.SIGKILL)
        return torch.softmax(x, self.dim)
