"""An autotuned Triton kernel: its first call tries several launches, each of which writes the output."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton
import triton.language as tl

from fastkernels.tasks.L1 import relu

CASES = ("rows", "odd", "empty")  # interpreted, where there is no GPU: slow

CONFIGS = [triton.Config({"BLOCK": block}) for block in (256, 1024)]


@triton.autotune(CONFIGS if torch.cuda.is_available() else CONFIGS[:1], key=["n"])
@triton.jit
def relu_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL), mask=at < n)


class ReLU(relu.ReLU):
    def forward(self, x):
        x = x.contiguous()
        out = torch.empty_like(x)
        if x.numel():
            relu_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, out, x.numel())
        return out
