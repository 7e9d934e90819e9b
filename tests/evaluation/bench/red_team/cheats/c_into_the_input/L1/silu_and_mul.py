"""Saves the allocation: the product goes over the gate, and a view of the input comes back."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("MUTATED_INPUT", "ALIASED")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate, inplace=True).mul_(up)
