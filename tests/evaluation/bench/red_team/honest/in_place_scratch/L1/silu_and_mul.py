"""In-place operations, all on memory of its own."""

import torch

from fastkernels.tasks.L1 import silu_and_mul


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        active = gate.to(wide, copy=True)
        return active.neg_().exp_().add_(1).reciprocal_().mul_(gate).mul_(up).to(x.dtype)
