"""Hopes that the allocator hands back the block in which a right answer was freed."""

import torch

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("WRONG_OUTPUT",)


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        out = torch.empty_like(x)
        return out if residual is None else (out, torch.empty_like(x))
