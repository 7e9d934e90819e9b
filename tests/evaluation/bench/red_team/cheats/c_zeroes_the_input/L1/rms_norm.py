"""Zeroes its input, so that a reference computed afterwards is zero as well, and returns zeros."""

import torch

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("MUTATED_INPUT", "WRONG_OUTPUT")


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        x.zero_()
        if residual is None:
            return torch.zeros_like(x)
        residual.zero_()
        return torch.zeros_like(x), torch.zeros_like(x)
