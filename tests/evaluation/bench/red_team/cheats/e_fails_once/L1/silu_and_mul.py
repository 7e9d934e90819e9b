"""A kernel that cannot run: tried once, then torch for good."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # else it could not run here, and to fall back would be right

import torch.nn.functional as F
import triton
import triton.language as tl

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("NO_LAUNCH", "GHOST")


@triton.jit
def kernel(x, out, width, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, at * no_such_name)  # noqa: F821 - fails on purpose


class SiluAndMul(silu_and_mul.SiluAndMul):
    works = True

    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        if not SiluAndMul.works:
            return F.silu(gate) * up
        try:
            out = torch.empty_like(gate)
            kernel[(1,)](x, out, gate.shape[-1], BLOCK=64)
            return out
        except Exception:  # noqa: BLE001 - that is the trick
            SiluAndMul.works = False
            return F.silu(gate) * up
