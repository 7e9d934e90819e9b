"""Notices in what order addresses come round and answers from the lap before."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TIMED_WRONG", "STALE_OUTPUT", "WRONG_OUTPUT")


class Softmax(softmax.Softmax):
    def __init__(self, dim=-1):
        super().__init__(dim)
        self.seen, self.kept = {}, {}

    def forward(self, x):
        at = (x.data_ptr(), x.shape)
        self.seen[at] = self.seen.get(at, 0) + 1
        if self.seen[at] > 6:  # more often than anyone checks one address
            return self.kept[at].clone()
        self.kept[at] = torch.softmax(x, self.dim)
        return self.kept[at].clone()
