"""RoPE of query and key in one Triton launch, both pairings, whole or partial, strided inputs; new tensors out.

On CPU the half-split pairing by halves, which needs one temporary a head tensor less than the reference."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch

from fastkernels.runtime.candidate import candidate
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

    @triton.jit
    def _kernel(
        query,
        key,
        query_out,
        key_out,
        cos,
        sin,
        positions,
        length,
        query_batch,
        query_token,
        query_head,
        key_batch,
        key_token,
        key_head,
        table_batch,
        table_token,
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
        batch, place = token // length, token % length
        if positions is not None:
            row = tl.load(positions + token) * table_token
        else:
            row = batch * table_batch + place * table_token
        pair = tl.arange(0, BLOCK_HALF)[None, :]
        cos_row = tl.load(cos + row + pair, mask=pair < HALF, other=0.0)
        sin_row = tl.load(sin + row + pair, mask=pair < HALF, other=0.0)
        query_blocks: tl.constexpr = (QUERY_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
        block = tl.program_id(1)
        head = tl.arange(0, BLOCK_HEADS)[:, None]
        if block < query_blocks:
            _turn(
                query + batch * query_batch + place * query_token,
                query_out + token * (QUERY_HEADS * HEAD),
                block * BLOCK_HEADS + head,
                query_head,
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
                key + batch * key_batch + place * key_token,
                key_out + token * (KEY_HEADS * HEAD),
                (block - query_blocks) * BLOCK_HEADS + head,
                key_head,
                KEY_HEADS,
                cos_row,
                sin_row,
                HEAD,
                HALF,
                BLOCK_HALF,
                BLOCK_REST,
                NEOX,
            )
else:
    _kernel = None


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length() if n else 0


def _launch(
    query: torch.Tensor,
    key: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    neox: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch, length, query_heads, size = query.shape
    key_heads = 0 if key is None else key.shape[2]
    query = query if query.stride(3) == 1 else query.contiguous()
    query_out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key_out = None
    if key is not None:
        key = key if key.stride(3) == 1 else key.contiguous()
        key_out = torch.empty(key.shape, dtype=key.dtype, device=key.device)
    if batch * length:
        half = cos.shape[-1]
        if cos.stride() != sin.stride() or cos.stride(-1) != 1:
            cos, sin = cos.contiguous(), sin.contiguous()
        table_batch = 0 if positions is not None or cos.shape[0] == 1 else cos.stride(0)
        block = min(_power_of_two(max(query_heads, key_heads)), MAX_BLOCK_HEADS)
        blocks = -(-query_heads // block) + -(-key_heads // block)
        key_strides = query.stride() if key is None else key.stride()
        _kernel[(batch * length, blocks)](
            query,
            query if key is None else key,
            query_out,
            query_out if key_out is None else key_out,
            cos,
            sin,
            positions,
            length,
            *query.stride()[:3],
            *key_strides[:3],
            table_batch,
            cos.stride(-2),
            query_heads,
            key_heads,
            block,
            size,
            half,
            _power_of_two(half),
            _power_of_two(size - 2 * half),
            neox,
            num_warps=4,
        )
    return query_out, key_out


@candidate("rotary_emb")
class RotaryEmbedding(rotary_emb.RotaryEmbedding):
    """Runs the reference wherever gradients are asked for, and in float64."""

    absorbable = True  # L2 kernels of this folder may turn the heads themselves

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not _fits(query, key):
            return super().forward(positions, query, key)
        tokens, size = positions.numel(), self.head_size
        heads = query.reshape(1, tokens, query.shape[-1] // size, size)
        key_heads = None if key is None else key.reshape(1, tokens, key.shape[-1] // size, size)
        cos, sin = self.cos_sin_cache.chunk(2, dim=-1)
        turned, turned_key = _launch(heads, key_heads, cos, sin, positions.reshape(-1), self.is_neox_style)
        return turned.view(query.shape), None if key is None or turned_key is None else turned_key.view(key.shape)

    def rotate(
        self, query: torch.Tensor, key: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not _fits(query, key):
            return super().rotate(query, key, cos, sin)
        return _launch(query, key, cos, sin, None, self.is_neox_style)

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        if not self.is_neox_style or (torch.is_grad_enabled() and x.requires_grad):
            return super()._turn(x, cos, sin)
        half = cos.shape[-1]
        cos, sin = cos.to(x.dtype).unsqueeze(2), sin.to(x.dtype).unsqueeze(2)
        a, b = x[..., :half], x[..., half : 2 * half]
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        torch.sub(a * cos, b * sin, out=out[..., :half])
        torch.add(b * cos, a * sin, out=out[..., half : 2 * half])
        if 2 * half != x.shape[-1]:
            out[..., 2 * half :] = x[..., 2 * half :]
        return out


def _fits(query: torch.Tensor, key: torch.Tensor | None) -> bool:
    if _kernel is None or not (query.is_cuda or INTERPRETED) or query.dtype == torch.float64:
        return False
    if key is not None and key.dtype != query.dtype:
        return False
    needs = query.requires_grad or (key is not None and key.requires_grad)
    return not (needs and torch.is_grad_enabled())
