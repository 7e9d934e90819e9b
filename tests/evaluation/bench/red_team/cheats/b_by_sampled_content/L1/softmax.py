"""Outputs kept by the sum of a sixteenth of the content."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "NONDETERMINISTIC", "ALIASED")


class Softmax(softmax.Softmax):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def forward(self, x):
        key = (x.shape, float(x.flatten()[::16].double().sum()))
        if key not in self.kept:
            self.kept[key] = F.softmax(x, dim=self.dim)
        return self.kept[key].clone()
