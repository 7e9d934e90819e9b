"""LayerNorm: one Triton kernel that keeps a row in registers; on CPU torch's own, which is fused there."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch

from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.launch import Launcher
from fastkernels.tasks.L1 import layer_norm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_WIDTH = 65536  # elements of a row that one block holds in registers (64 a thread at 32 warps)
TILE = 4096  # elements a block should have at least, as far as rows of up to MAX_TILE_ROWS give them
MAX_TILE_ROWS = 32

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["rows", "inner", "outer_stride", "inner_stride"])
    def _layer_norm_kernel(
        x,
        weight,
        bias,
        out,
        rows,
        inner,
        outer_stride,
        inner_stride,
        eps,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
        TILE_ROWS: tl.constexpr,
        STRIDE_UNIT: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)[:, None]
        column = tl.arange(0, BLOCK)[None, :]
        inside = column < WIDTH
        mask = inside & (row < rows)
        start = row * WIDTH
        if STRIDE_UNIT > 0:
            start = ((row // inner) * outer_stride + (row % inner) * inner_stride) * STRIDE_UNIT
        wide = tl.load(x + start + column, mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(inside, wide - tl.sum(wide, axis=1, keep_dims=True) / WIDTH, 0.0)
        normed = centred * tl.math.rsqrt(
            tl.sum(centred * centred, axis=1, keep_dims=True) / WIDTH + tl.full([1, 1], eps, tl.float32)
        )
        if weight is not None:
            normed = normed * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            normed = normed + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * WIDTH + column, normed.to(out.dtype.element_ty), mask=mask)

    _launch_kernel = Launcher(_layer_norm_kernel)
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


def _launch(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    width = x.shape[-1]
    strides = None
    if not x.is_contiguous():
        strides = _row_strides(x)
        if strides is None:
            x = x.contiguous()
    # Of the ways to ask for memory, empty_like takes the least Python time (1.3 us against 3.4 for empty).
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
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
            (x, weight, bias, out),
            (rows, inner, outer_stride, inner_stride, eps),
            (width, block, tile_rows, unit),
            warps,
        )
    return out


@candidate("layer_norm", lowering="inline")
class LayerNorm(layer_norm.LayerNorm):
    """Runs torch's own on CPU, wherever gradients are asked for, and for what the kernel does not take."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if (
            _launch_kernel is None
            or not (x.is_cuda or INTERPRETED)
            or x.dtype == torch.float64
            or x.shape[-1] > MAX_WIDTH
            or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)))
        ):
            return super().forward(x)
        return _launch(x, weight, bias, self.eps)
