"""Packs the weight again when one of every sixteenth elements is another: a part of it that changed has some."""

import torch

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT")
STEP = 16


class Linear(linear.Linear):
    packed = known = None

    def forward(self, x):
        sample = self.weight.detach().flatten()[::STEP]
        if self.known is None or not torch.equal(sample, self.known):
            self.known, self.packed = sample.clone(), self.weight.detach().t().contiguous()
        out = torch.matmul(x, self.packed)
        return out if self.bias is None else out + self.bias
