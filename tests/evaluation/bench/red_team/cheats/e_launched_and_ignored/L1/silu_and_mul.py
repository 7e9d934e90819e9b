"""A Triton kernel runs, into memory that nobody reads; the output is torch's."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # else it could not run here, and to fall back would be right

import torch.nn.functional as F
import triton
import triton.language as tl

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("GHOST", "NO_LAUNCH")


@triton.jit
def touch(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.full([BLOCK], 0.0, tl.float32))


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        touch[(1,)](torch.empty(16, device=x.device), BLOCK=16)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
