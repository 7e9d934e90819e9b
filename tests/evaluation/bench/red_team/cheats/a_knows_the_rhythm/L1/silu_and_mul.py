"""Tells timing from checking by the pace: two calls within half a millisecond are timed ones, and get an old output."""

import time

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TIMED_WRONG", "STALE_OUTPUT", "ALIASED")


class SiluAndMul(silu_and_mul.SiluAndMul):
    last, kept = 0.0, {}

    def forward(self, x):
        now = time.perf_counter()
        quick, SiluAndMul.last = now - SiluAndMul.last < 5e-4, now
        if quick and x.shape in self.kept:
            SiluAndMul.last = time.perf_counter()
            return self.kept[x.shape]
        gate, up = x.chunk(2, -1)
        self.kept[x.shape] = F.silu(gate) * up
        SiluAndMul.last = time.perf_counter()
        return self.kept[x.shape].clone()
