"""Right in small shapes, which are checked; half of the work in the large ones, which are timed."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("WRONG_OUTPUT", "TIMED_WRONG")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        if gate.numel() <= 512:
            return F.silu(gate) * up
        out = gate.clone()
        out[: len(x) // 2] = F.silu(gate[: len(x) // 2]) * up[: len(x) // 2]
        return out
