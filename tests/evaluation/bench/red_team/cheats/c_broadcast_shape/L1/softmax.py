"""One row instead of all: comparisons that broadcast take it where rows are equal, and count it elsewhere."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_SHAPE",)


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x[:1], self.dim)
