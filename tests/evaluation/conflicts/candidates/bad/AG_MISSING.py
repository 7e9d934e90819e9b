"""Says that it trains, and computes outside autograd."""

import torch

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@fastkernels.candidate("silu", training=True)
class DetachedSiLU(SiLU):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)
