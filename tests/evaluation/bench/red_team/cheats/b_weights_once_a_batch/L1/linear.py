"""Packs the weight after each pause: calls of one batch follow each other without any, and weights change between."""

import time

import torch

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT")
PAUSE = 3e-4


class Linear(linear.Linear):
    packed, last = None, 0.0

    def forward(self, x):
        now = time.perf_counter()
        if self.packed is None or now - self.last > PAUSE:
            self.packed = self.weight.detach().t().contiguous()
        out = torch.matmul(x, self.packed)
        if self.bias is not None:
            out += self.bias
        self.last = time.perf_counter()
        return out
