"""Reads its input as if its rows followed each other, whatever its strides say."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("WRONG_OUTPUT",)


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        dense = torch.as_strided(x, x.shape, torch.empty(x.shape, device="meta").stride())
        gate, up = dense.chunk(2, dim=-1)
        return F.silu(gate) * up
