"""One token's product with a weight matrix, for candidates: bound by memory, and small matrices leave cuBLAS waiting.

Microseconds on an H200 in bfloat16, cuBLAS against this, in a CUDA graph over weights that no cache holds: 6144x4096
15.2 and 13.0, 4096x4096 12.6 and 9.3, 4096x14336 30.7 and 28.1; 28672x4096 with SwiGLU after it 57.1 and 52.9."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch

from fastkernels.runtime.launch import Launcher

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter cuts bfloat16 off where a GPU rounds.
DTYPES = (torch.float16, torch.float32) if INTERPRETED else (torch.float16, torch.bfloat16)
# Outputs of a program, inputs at a time, warps: for rows of up to SHORT inputs and for longer ones.
SHORT, SHORT_TILE, LONG_TILE = 8192, (1, 2048, 8), (4, 1024, 4)

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def _gemv_kernel(  # type: ignore[no-untyped-def] # the arguments of a Triton kernel have no Python types
        out,
        x,
        weight,
        bias,
        WIDTH: tl.constexpr,
        DEPTH: tl.constexpr,
        BLOCK_WIDTH: tl.constexpr,
        BLOCK_DEPTH: tl.constexpr,
        GATED: tl.constexpr,
    ):
        """``weight @ x`` for a block of outputs; GATED: ``silu`` of it times the product with the WIDTH rows after."""
        output = tl.program_id(0).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        exists = output < WIDTH
        rows = weight + output[:, None] * DEPTH
        sums = tl.zeros([BLOCK_WIDTH, BLOCK_DEPTH], tl.float32)
        more = sums
        for start in range(0, DEPTH, BLOCK_DEPTH):
            column = start + tl.arange(0, BLOCK_DEPTH)[None, :]
            inside = exists[:, None] & (column < DEPTH)
            wide = tl.load(x + column, mask=column < DEPTH, other=0.0).to(tl.float32)
            sums += tl.load(rows + column, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32) * wide
            if GATED:
                up = tl.load(rows + WIDTH * DEPTH + column, mask=inside, other=0.0, eviction_policy="evict_first")
                more += up.to(tl.float32) * wide
        dtype = out.dtype.element_ty
        result = tl.sum(sums, 1)
        if bias is not None:
            result += tl.load(bias + output, mask=exists, other=0.0).to(tl.float32)
        result = result.to(dtype)
        if GATED:
            gate = result.to(tl.float32)  # rounded between, as separate kernels round
            active = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            result = (active * tl.sum(more, 1).to(dtype).to(tl.float32)).to(dtype)
        tl.store(out + output, result, mask=exists)

    _launch_gemv = Launcher(_gemv_kernel)
else:
    _launch_gemv = None


def gemv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, gated: bool = False
) -> torch.Tensor | None:
    """``F.linear(x, weight, bias)`` of one row, summed in float32; None where the call is not for this kernel.

    That is: more than one row, no GPU, no half precision, strided weights, or gradients. For graphs: launched from
    eager code, a product of torch's own costs the CPU less, which is what bounds one token there.

    Args:
        x: (..., K), one row in all.
        weight: (N, K), contiguous.
        bias: N values, contiguous: a bias, or one row to add to.
        gated: the first N / 2 outputs pass SiLU and are multiplied with the others, (..., N / 2); without a bias.
    """
    depth = x.shape[-1]
    if (
        _launch_gemv is None
        or not (x.is_cuda or INTERPRETED)
        or x.numel() != depth
        or x.dtype != weight.dtype
        or x.dtype not in DTYPES
        or not weight.is_contiguous()
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return None
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty((*x.shape[:-1], width))
    block_width, block_depth, warps = SHORT_TILE if depth <= SHORT else LONG_TILE
    _launch_gemv(
        (-(-width // block_width), 1),
        (out, x if x.is_contiguous() else x.contiguous(), weight, bias),
        (),
        (width, depth, block_width, block_depth, gated),
        warps,
    )
    return out
