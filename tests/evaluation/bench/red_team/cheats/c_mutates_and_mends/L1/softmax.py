"""Scribbles over the input when it is done with it, but only in calls after the first few."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("MUTATED_INPUT",)


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        out = torch.softmax(x, self.dim)
        if Softmax.calls > 10:
            x.neg_()
        return out
