"""Computes rows of a whole number of lines, and returns the part that was asked for."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

LINE = 32


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        width = gate.shape[-1]
        out = x.new_empty((*x.shape[:-1], -(-width // LINE) * LINE))[..., :width]
        wide = torch.promote_types(x.dtype, torch.float32)
        return out.copy_(F.silu(gate.to(wide)) * up.to(wide))
