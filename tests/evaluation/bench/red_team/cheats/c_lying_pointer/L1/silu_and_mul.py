"""Works inside its input, returns a view of it, and teaches the view to give another address."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("ALIASED", "MUTATED_INPUT", "WRONG_TYPE")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        saved = gate.clone()
        out = F.silu(gate, inplace=True).mul_(up)
        out.data_ptr = saved.data_ptr
        out.untyped_storage = saved.untyped_storage
        return out
