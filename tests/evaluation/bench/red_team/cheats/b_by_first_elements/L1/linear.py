"""Outputs kept by a fingerprint of the content: the first and the last element."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "NONDETERMINISTIC", "ALIASED")


class Linear(linear.Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def forward(self, x):
        key = (x.shape, *x.flatten()[:1].tolist(), *x.flatten()[-1:].tolist())
        if key not in self.kept:
            self.kept[key] = F.linear(x, self.weight, self.bias)
        return self.kept[key].clone()
