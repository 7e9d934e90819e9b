"""Keeps its output as an attribute of the argument, beside a view of it: the same tensor object comes again."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        if not hasattr(x, "activated"):
            gate, up = x.chunk(2, dim=-1)
            x.activated = F.silu(gate) * up
        return x.activated.clone()
