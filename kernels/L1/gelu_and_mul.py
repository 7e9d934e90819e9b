"""GELU gate (erf or tanh) times up, on one tensor that holds both: one Triton pass; on CPU the product in place."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch
import torch.nn.functional as F

from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.launch import Launcher
from fastkernels.tasks.L1 import gelu_and_mul

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BLOCK = 1024  # outputs of a program: two loads of 16 bytes for each of 128 threads in half precision

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def _gelu_and_mul_kernel(
        x, out, STRIDE: tl.constexpr, TANH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
    ):
        blocks: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
        row = (tl.program_id(0) // blocks).to(tl.int64)
        column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = column < WIDTH
        gate = tl.load(x + row * STRIDE + column, mask=mask, other=0.0)
        up = tl.load(x + row * STRIDE + WIDTH + column, mask=mask, other=0.0)
        wide = gate.to(tl.float32)
        if TANH:
            # (1 + tanh(u)) / 2 is the sigmoid of 2 u, which loses no digits where the tanh nears -1; 2 sqrt(2 / pi).
            active = wide / (1.0 + tl.exp(-1.5957691216057308 * (wide + 0.044715 * wide * wide * wide)))
        else:
            active = 0.5 * wide * (1.0 + tl.math.erf(wide * 0.7071067811865476))
        active = active.to(gate.dtype).to(tl.float32)
        tl.store(out + row * WIDTH + column, (active * up.to(tl.float32)).to(gate.dtype), mask=mask)

    _launch_kernel = Launcher(_gelu_and_mul_kernel)
else:
    _launch_kernel = None


@candidate("gelu_and_mul", lowering="inline")
class GeluAndMul(gelu_and_mul.GeluAndMul):
    """Runs the reference wherever gradients are asked for, and in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64 or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        if _launch_kernel is not None and (x.is_cuda or INTERPRETED):
            return _launch(x, self.approximate == "tanh")
        gate, up = x.chunk(2, dim=-1)
        return F.gelu(gate, approximate=self.approximate).mul_(up)


def _launch(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    width = x.shape[-1] // 2
    out = x.new_empty((*x.shape[:-1], width))
    if out.numel():
        if not (x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1)):
            x = x.contiguous()
        stride = x.stride(0) if x.dim() == 2 else 2 * width
        programs = out.numel() // width * ((width + BLOCK - 1) // BLOCK)
        _launch_kernel((programs, 1), (x, out), (), (stride, tanh, width, BLOCK), 4)
    return out
