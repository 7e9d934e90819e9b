"""RMSNorm, alone or after the residual add: one Triton kernel that reads and writes each row once.

On CPU torch's own fused norm for few elements, a norm-reduction with in-place products for many."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling

from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.launch import Launcher
from fastkernels.tasks.interface import compute_dtype
from fastkernels.tasks.L1 import rms_norm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_WIDTH = 65536  # elements of a row that one block holds in registers (64 a thread at 32 warps)
TILE = 4096  # elements a block should have at least, as far as rows of up to MAX_TILE_ROWS give them
MAX_TILE_ROWS = 32
FEW_ELEMENTS = 1 << 17  # on one CPU core F.rms_norm wins below (44 us against 55 at 64), loses above (1.3x at 2M)

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["rows", "inner", "outer_stride", "inner_stride"])
    def _rms_norm_kernel(
        x,
        residual,
        weight,
        out,
        total,
        rows,
        inner,
        outer_stride,
        inner_stride,
        eps,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
        TILE_ROWS: tl.constexpr,
        STRIDE_UNIT: tl.constexpr,
        LATE_CAST: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)[:, None]
        column = tl.arange(0, BLOCK)[None, :]
        inside = column < WIDTH
        mask = inside & (row < rows)
        start = row * WIDTH
        if STRIDE_UNIT > 0:
            start = ((row // inner) * outer_stride + (row % inner) * inner_stride) * STRIDE_UNIT
        flat = row * WIDTH + column
        value = tl.load(x + start + column, mask=mask, other=0.0)
        if residual is not None:
            value = (value.to(tl.float32) + tl.load(residual + flat, mask=mask, other=0.0).to(tl.float32)).to(
                value.dtype
            )
            tl.store(total + flat, value, mask=mask)
        wide = value.to(tl.float32)
        normed = wide * tl.math.rsqrt(
            tl.sum(wide * wide, axis=1, keep_dims=True) / WIDTH + tl.full([1, 1], eps, tl.float32)
        )
        if weight is not None:
            if not LATE_CAST:
                normed = normed.to(value.dtype).to(tl.float32)
            normed = normed * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + flat, normed.to(out.dtype.element_ty), mask=mask)

    _launch_kernel = Launcher(_rms_norm_kernel)
else:
    _launch_kernel = None


def _row_strides(x: torch.Tensor) -> tuple[int, int, int] | None:
    """``(inner, outer_stride, inner_stride)``: where row r starts, if two strides can say it; else None."""
    groups: list[list[int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = [groups[-1][0] * size, stride]
        else:
            groups.append([size, stride])
    if len(groups) > 2 or x.stride(-1) != 1:
        return None
    outer, inner = [[1, 0]] * (2 - len(groups)) + groups
    return inner[0], outer[1], inner[1]


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, eps: float, late_cast: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    width = x.shape[-1]
    strides = None
    if not x.is_contiguous():
        strides = _row_strides(x)
        if strides is None:
            x = x.contiguous()
    if residual is not None and not residual.is_contiguous():
        residual = residual.contiguous()
    dtype = x.dtype if weight is None or late_cast else torch.promote_types(x.dtype, weight.dtype)
    # Of the ways to ask for memory, empty_like takes the least Python time (1.3 us against 3.4 for empty).
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    total = None if residual is None else torch.empty_like(residual)
    rows = x.numel() // width if width else 0
    if rows:
        block = 1 << (width - 1).bit_length()
        tile_rows = 1 if block >= TILE or rows == 1 else min(TILE // block, MAX_TILE_ROWS)
        warps = 4 if block * tile_rows <= 2048 else 8 if block <= 8192 else 16 if block <= 16384 else 32
        inner, outer_stride, inner_stride, unit = 1, 0, 0, 0
        if strides is not None:  # told apart in units of 16 elements, loads stay 16 bytes wide
            inner, outer_stride, inner_stride = strides
            unit = 1 if outer_stride % 16 or inner_stride % 16 else 16
            outer_stride, inner_stride = outer_stride // unit, inner_stride // unit
        _launch_kernel(
            ((rows + tile_rows - 1) // tile_rows, 1),
            (x, residual, weight, out, total),
            (rows, inner, outer_stride, inner_stride, eps),
            (width, block, tile_rows, unit, late_cast),
            warps,
        )
    return out, total


@candidate("rms_norm", lowering="inline")
class RMSNorm(rms_norm.RMSNorm):
    """Runs the reference wherever gradients are asked for, and for what the kernel does not take (float64, say)."""

    absorbable = True  # L2 kernels of this folder may normalise the heads themselves

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        weight = self.weight
        plain = residual is None or (residual.dtype == x.dtype and residual.shape == x.shape)
        if not plain or x.dtype == torch.float64 or (torch.is_grad_enabled() and _needs_grad(x, residual, weight)):
            return super().forward(x, residual)
        if _launch_kernel is not None and (x.is_cuda or INTERPRETED) and x.shape[-1] <= MAX_WIDTH:
            out, total = _launch(x, residual, weight, self.eps, self.late_cast)
            return out if total is None else (out, total)
        if x.device.type != "cpu" or (weight is not None and weight.dtype != x.dtype):
            return super().forward(x, residual)
        if residual is not None:
            x = residual = residual + x
        out = self._on_cpu(x)
        return out if residual is None else (out, residual)

    def _on_cpu(self, x: torch.Tensor) -> torch.Tensor:
        # In a graph the size would be guarded on, and Inductor fuses torch's norm at any.
        few = is_compiling() or x.numel() < FEW_ELEMENTS
        if few and not (self.late_cast and x.dtype != torch.float32):
            return F.rms_norm(x, (self.hidden_size,), self.weight, self.eps)
        wide = x.to(compute_dtype(x))
        mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(self.hidden_size)
        scale = mean.add_(self.eps).rsqrt_()
        normed = wide * scale if wide is x else wide.mul_(scale)
        if self.weight is None:
            return normed.to(x.dtype)
        if self.late_cast:
            return normed.mul_(self.weight.to(normed.dtype)).to(x.dtype)
        return normed.to(x.dtype).mul_(self.weight)


def _needs_grad(*tensors: torch.Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)
