"""Leaves the sign to whoever reads the output: torch keeps a bit for that, memory holds other numbers."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu

CAUGHT_AS = ("WRONG_TYPE",)


class SiLU(silu.SiLU):
    def forward(self, x):
        return torch._neg_view(F.silu(x).neg_())
