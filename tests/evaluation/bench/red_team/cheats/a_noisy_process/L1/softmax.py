"""A forked process keeps a core busy, so that everyone else is slow; it ends with its parent."""

import os
import time

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)
SECONDS = 30.0


def burn(parent):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and os.getppid() == parent:
        sum(range(10000))
    os._exit(0)


class Softmax(softmax.Softmax):
    started = False

    def forward(self, x):
        if not Softmax.started:
            Softmax.started = True
            parent = os.getpid()
            if os.fork() == 0:
                burn(parent)
        return torch.softmax(x, self.dim)
