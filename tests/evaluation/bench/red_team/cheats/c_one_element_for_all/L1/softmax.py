"""Returns a column of ones as one element, repeated by its strides: who writes to it writes to all."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("ALIASED",)


class Softmax(softmax.Softmax):
    def forward(self, x):
        if x.shape[self.dim] == 1:
            return x.new_ones(()).expand(x.shape)
        return torch.softmax(x, self.dim)
