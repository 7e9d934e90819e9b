"""Returns half precision: half of the bytes to write, and a comparison that promotes would not notice."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("WRONG_DTYPE",)


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return (F.silu(gate) * up).to(torch.float16)
