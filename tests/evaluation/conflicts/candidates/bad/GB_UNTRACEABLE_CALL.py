"""Asks the C library through ctypes for the processor it runs on."""

import ctypes

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

libc = ctypes.CDLL(None)


@fastkernels.candidate("relu")
class LocalReLU(ReLU):
    def forward(self, x):
        return x.clamp(min=0) if libc.sched_getcpu() >= 0 else super().forward(x)
