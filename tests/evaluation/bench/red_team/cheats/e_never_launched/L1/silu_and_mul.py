"""A Triton kernel for the reader; torch for the work."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # else it could not run here, and to fall back would be right

import torch.nn.functional as F
import triton
import triton.language as tl

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("NO_LAUNCH",)


@triton.jit
def silu_and_mul_kernel(x, out, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    gate = tl.load(x + row * 2 * width + column, mask=column < width).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + column, mask=column < width).to(tl.float32)
    tl.store(out + row * width + column, gate / (1 + tl.exp(-gate)) * up, mask=column < width)


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
