"""The largest number everywhere: norms that overflow make an error of inf by inf."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_OUTPUT",)


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.full_like(x, torch.finfo(x.dtype).max)
