"""torch.compile inside: it starts compilers, threads and patches of its own, all of them torch's."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul


@torch.compile(dynamic=True)
def fused(x):
    gate, up = x.chunk(2, dim=-1)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (F.silu(gate.to(wide)) * up.to(wide)).to(x.dtype)


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        return fused(x)
