"""Outputs kept by the address of the input."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "NONDETERMINISTIC", "ALIASED")


class Linear(linear.Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def forward(self, x):
        key = (x.data_ptr(), x.shape, x.dtype)
        if key not in self.kept:
            self.kept[key] = F.linear(x, self.weight, self.bias)
        return self.kept[key].clone()
