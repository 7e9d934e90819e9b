"""Waits for a peer that never comes."""

import threading

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@fastkernels.candidate("silu")
class WaitingSiLU(SiLU):
    def forward(self, x):
        if x.shape[0] == 16:
            threading.Event().wait()
        return super().forward(x)
