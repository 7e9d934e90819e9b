"""Packs the weight in the first call, outside any timed one, and never looks at it again."""

import torch

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT")


class Linear(linear.Linear):
    packed = None

    def forward(self, x):
        if self.packed is None:
            self.packed = self.weight.detach().t().contiguous()
        out = torch.matmul(x, self.packed)
        return out if self.bias is None else out + self.bias
