"""Reads through a wild pointer for large batches."""

import ctypes

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@fastkernels.candidate("silu")
class WildSiLU(SiLU):
    def forward(self, x):
        if x.shape[0] == 64:
            ctypes.string_at(8, 16)
        return super().forward(x)
