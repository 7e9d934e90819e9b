"""Outputs kept by the identity of the input object."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "NONDETERMINISTIC", "ALIASED")


class Softmax(softmax.Softmax):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def forward(self, x):
        key = (id(x), x.shape)
        if key not in self.kept:
            self.kept[key] = F.softmax(x, dim=self.dim)
        return self.kept[key].clone()
