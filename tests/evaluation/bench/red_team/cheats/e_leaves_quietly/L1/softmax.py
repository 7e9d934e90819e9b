"""Ends its process with status 0 in the middle of the work."""

import os

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("CRASH", "CALL_ERROR")


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        if Softmax.calls > 5:
            os._exit(0)
        return torch.softmax(x, self.dim)
