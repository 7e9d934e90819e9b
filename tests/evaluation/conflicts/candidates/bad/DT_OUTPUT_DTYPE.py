"""Accumulates in float32 and forgets to round back."""

import torch

import fastkernels
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul


@fastkernels.candidate("silu_and_mul")
class WideSiluAndMul(SiluAndMul):
    def forward(self, x):
        gate, up = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        return gate * gate.sigmoid() * up
