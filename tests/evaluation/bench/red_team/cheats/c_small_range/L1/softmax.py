"""A polynomial for the exponential, right for inputs between -4 and 4, which is what normal draws give."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_OUTPUT",)


class Softmax(softmax.Softmax):
    def forward(self, x):
        wide = x.double() / 16
        powers = torch.ones_like(wide)
        for i in range(8, 0, -1):
            powers = 1 + powers * wide / i
        powers = powers.pow(16)
        return (powers / powers.sum(self.dim, keepdim=True)).to(x.dtype)
