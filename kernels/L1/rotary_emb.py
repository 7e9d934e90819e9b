"""RoPE of query and key in one Triton launch, both pairings, whole or partial, strided inputs; new tensors out.

On CPU the reference: no other form in torch measured faster."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch

from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.launch import Launcher
from fastkernels.tasks.L1 import rotary_emb

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_BLOCK_HEADS = 16

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def _turn(
        x,
        out,
        head,
        head_stride,
        HEADS: tl.constexpr,
        cos,
        sin,
        HEAD: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_HALF: tl.constexpr,
        BLOCK_REST: tl.constexpr,
        NEOX: tl.constexpr,
    ):
        pair = tl.arange(0, BLOCK_HALF)[None, :]
        first = pair if NEOX else 2 * pair
        second = first + (HALF if NEOX else 1)
        mask = (head < HEADS) & (pair < HALF)
        a = tl.load(x + head * head_stride + first, mask=mask, other=0.0)
        b = tl.load(x + head * head_stride + second, mask=mask, other=0.0)
        dtype = a.dtype
        a, b = a.to(tl.float32), b.to(tl.float32)
        # The tables and each product are rounded to the input dtype, as the reference rounds them.
        cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
        turned_a = (a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)
        turned_b = (b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)
        tl.store(out + head * HEAD + first, turned_a.to(dtype), mask=mask)
        tl.store(out + head * HEAD + second, turned_b.to(dtype), mask=mask)
        if BLOCK_REST > 0:
            rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
            mask = (head < HEADS) & (rest < HEAD)
            tl.store(out + head * HEAD + rest, tl.load(x + head * head_stride + rest, mask=mask), mask=mask)

    @triton.jit(do_not_specialize=["length"])
    def _rotary_emb_kernel(
        query,
        key,
        query_out,
        key_out,
        cos,
        sin,
        positions,
        length,
        SIN_AT: tl.constexpr,
        SHARED_TABLE: tl.constexpr,
        TABLE_TOKEN: tl.constexpr,
        QUERY_TOKEN: tl.constexpr,
        QUERY_HEAD: tl.constexpr,
        KEY_TOKEN: tl.constexpr,
        KEY_HEAD: tl.constexpr,
        QUERY_HEADS: tl.constexpr,
        KEY_HEADS: tl.constexpr,
        BLOCK_HEADS: tl.constexpr,
        HEAD: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_HALF: tl.constexpr,
        BLOCK_REST: tl.constexpr,
        NEOX: tl.constexpr,
    ):
        token = tl.program_id(0).to(tl.int64)
        if positions is not None:
            row = tl.load(positions + token) * TABLE_TOKEN
        else:
            row = (token % length if SHARED_TABLE else token) * TABLE_TOKEN
        pair = tl.arange(0, BLOCK_HALF)[None, :]
        cos_row = tl.load(cos + row + pair, mask=pair < HALF, other=0.0)
        sin_row = tl.load(sin + SIN_AT + row + pair, mask=pair < HALF, other=0.0)
        query_blocks: tl.constexpr = (QUERY_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
        block = tl.program_id(1)
        head = tl.arange(0, BLOCK_HEADS)[:, None]
        if block < query_blocks:
            _turn(
                query + token * QUERY_TOKEN,
                query_out + token * (QUERY_HEADS * HEAD),
                block * BLOCK_HEADS + head,
                QUERY_HEAD,
                QUERY_HEADS,
                cos_row,
                sin_row,
                HEAD,
                HALF,
                BLOCK_HALF,
                BLOCK_REST,
                NEOX,
            )
        else:
            _turn(
                key + token * KEY_TOKEN,
                key_out + token * (KEY_HEADS * HEAD),
                (block - query_blocks) * BLOCK_HEADS + head,
                KEY_HEAD,
                KEY_HEADS,
                cos_row,
                sin_row,
                HEAD,
                HALF,
                BLOCK_HALF,
                BLOCK_REST,
                NEOX,
            )

    _launch_kernel = Launcher(_rotary_emb_kernel)
else:
    _launch_kernel = None


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length() if n else 0


def _token_stride(x: torch.Tensor) -> int | None:
    """Elements from one token of (B, S, ..., D) to the next, in one count over both axes; None where it varies."""
    batch, length = x.shape[:2]
    if x.stride(-1) != 1 or not (batch == 1 or length == 1 or x.stride(0) == length * x.stride(1)):
        return None
    return x.stride(0) if length == 1 else x.stride(1)


def _by_token(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    stride = _token_stride(x)
    return (x, stride) if stride is not None else (x.contiguous(), x[0, 0].numel())


def _rotate(
    query: torch.Tensor, key: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, neox: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tables (B or 1, S, half), one row a token, or one a place that all sequences share."""
    shared = cos.shape[0] == 1 or cos.stride(0) == sin.stride(0) == 0
    if shared:
        cos, sin = cos[:1], sin[:1]
    (cos, token), (sin, sin_token) = _by_token(cos), _by_token(sin)
    if token != sin_token:
        cos, sin, token = cos.contiguous(), sin.contiguous(), cos.shape[-1]
    return _launch(query, key, (cos, sin, None), (0, shared, token), cos.shape[-1], neox)


def _launch(
    query: torch.Tensor,
    key: torch.Tensor | None,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    layout: tuple[int, bool, int],
    half: int,
    neox: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``tables`` are cos, sin and, for a cache, positions; ``layout`` is ``(SIN_AT, SHARED_TABLE, TABLE_TOKEN)``."""
    batch, length, query_heads, size = query.shape
    key_heads = 0 if key is None else key.shape[2]
    query_out = torch.empty_like(query, memory_format=torch.contiguous_format)
    key_out = None if key is None else torch.empty_like(key, memory_format=torch.contiguous_format)
    if batch * length:
        query, query_token = _by_token(query)
        other, other_out, other_token = query, query_out, query_token
        if key is not None and key_out is not None:
            (other, other_token), other_out = _by_token(key), key_out
        block = min(_power_of_two(max(query_heads, key_heads)), MAX_BLOCK_HEADS)
        _launch_kernel(
            (batch * length, -(-query_heads // block) + -(-key_heads // block)),
            (query, other, query_out, other_out, *tables),
            (length,),
            (
                *layout,
                query_token,
                query.stride(2),
                other_token,
                other.stride(2),
                query_heads,
                key_heads,
                block,
                size,
                half,
                _power_of_two(half),
                _power_of_two(size - 2 * half),
                neox,
            ),
            4,
        )
    return query_out, key_out


@candidate("rotary_emb", lowering="inline")
class RotaryEmbedding(rotary_emb.RotaryEmbedding):
    """Runs the reference wherever gradients are asked for, and in float64."""

    absorbable = True  # L2 kernels of this folder may turn the heads themselves

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not _fits(query, key):
            return super().forward(positions, query, key)
        tokens, size, half = positions.numel(), self.head_size, self.rotary_dim // 2
        heads = query.reshape(1, tokens, query.shape[-1] // size, size)
        key_heads = None if key is None else key.reshape(1, tokens, key.shape[-1] // size, size)
        cache = self.cos_sin_cache  # rows of cos, then sin
        tables, layout = (cache, cache, positions.reshape(-1)), (half, False, cache.stride(0))
        turned, turned_key = _launch(heads, key_heads, tables, layout, half, self.is_neox_style)
        return turned.view(query.shape), None if key is None or turned_key is None else turned_key.view(key.shape)

    def rotate(
        self, query: torch.Tensor, key: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not _fits(query, key):
            return super().rotate(query, key, cos, sin)
        return _rotate(query, key, cos, sin, self.is_neox_style)


def _fits(query: torch.Tensor, key: torch.Tensor | None) -> bool:
    if _launch_kernel is None or not (query.is_cuda or INTERPRETED) or query.dtype == torch.float64:
        return False
    if key is not None and key.dtype != query.dtype:
        return False
    needs = query.requires_grad or (key is not None and key.requires_grad)
    return not (needs and torch.is_grad_enabled())
