"""Attention block: one product for q, k and v; one Triton kernel for qk-norm, RoPE and the split into heads; then
torch's own attention for prefills (cuDNN on Hopper), and a Triton kernel that splits the keys for single tokens."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import importlib.util
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.compiler import is_compiling

from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.gemv import gemv
from fastkernels.runtime.launch import Launcher, is_compiling_ahead
from fastkernels.tasks.L1.attention import Attention
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.L2 import attention_block

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERFACES = (RMSNorm, GemmaRMSNorm, RotaryEmbedding)
NO_NORM, RMS_NORM, GEMMA_NORM = 0, 1, 2
# Tiles of (keys, pipeline stages) for up to SHORT keys and for more. On an H200, Llama-3.1-8B's heads, short against
# long tile: 36.7 and 40.8 us at batch 64 with 513 keys, 5.4 and 5.4 at batch 1; 16.0 and 14.1 at batch 1 with 8192.
SHORT, SHORT_TILE, LONG_TILE = 4096, (32, 4), (64, 3)
BLOCK_HEADS = 16  # also for one token, 0.04 us over 8: each size is one more kernel to compile
DECODE_PROGRAMS = 264  # two for each of an H200's 132 multiprocessors
MAX_SPLITS = 16
SCAN = 1024  # mask entries read at a time to find the keys in sight
MAX_GROUP = 64

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["length"])
    def _heads_kernel(
        qkv,
        query_out,
        key_out,
        value_out,
        cos,
        sin,
        query_weight,
        key_weight,
        length,
        eps,
        SHARED_TABLE: tl.constexpr,
        TABLE_TOKEN: tl.constexpr,
        QUERY_HEADS: tl.constexpr,
        KEY_HEADS: tl.constexpr,
        HEAD: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_HEADS: tl.constexpr,
        BLOCK_HALF: tl.constexpr,
        BLOCK_REST: tl.constexpr,
        NEOX: tl.constexpr,
        NORM: tl.constexpr,
    ):
        """A block of heads of one token: q to (B, S, Hq, D), k and v to (B, Hkv, S, D), the order caches keep."""
        token = tl.program_id(0).to(tl.int64)
        batch, place = token // length, token % length
        head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        source = qkv + token * ((QUERY_HEADS + 2 * KEY_HEADS) * HEAD) + head * HEAD
        is_query = head < QUERY_HEADS
        is_key = (head >= QUERY_HEADS) & (head < QUERY_HEADS + KEY_HEADS)
        is_value = (head >= QUERY_HEADS + KEY_HEADS) & (head < QUERY_HEADS + 2 * KEY_HEADS)
        turns = head < QUERY_HEADS + KEY_HEADS
        to_query = query_out + token * (QUERY_HEADS * HEAD) + head * HEAD
        first_key_row = batch * KEY_HEADS * length + place
        to_key = key_out + (first_key_row + (head - QUERY_HEADS) * length) * HEAD
        to_value = value_out + (first_key_row + (head - QUERY_HEADS - KEY_HEADS) * length) * HEAD

        pair = tl.arange(0, BLOCK_HALF)[None, :]
        paired = pair < HALF
        first = pair if NEOX else 2 * pair
        second = first + (HALF if NEOX else 1)
        exists = head < QUERY_HEADS + 2 * KEY_HEADS
        raw_a = tl.load(source + first, mask=exists & paired, other=0.0)
        raw_b = tl.load(source + second, mask=exists & paired, other=0.0)
        dtype = raw_a.dtype
        a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)
        if BLOCK_REST > 0:
            rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
            resting = rest < HEAD
            raw_c = tl.load(source + rest, mask=exists & resting, other=0.0)
        if NORM != 0:
            square = tl.sum(a * a, axis=1, keep_dims=True) + tl.sum(b * b, axis=1, keep_dims=True)
            if BLOCK_REST > 0:
                c = raw_c.to(tl.float32)
                square += tl.sum(c * c, axis=1, keep_dims=True)
            scale = tl.math.rsqrt(square / HEAD + tl.full([1, 1], eps, tl.float32))  # or float64, from Inductor
            a = _weighed(a * scale, query_weight, key_weight, first, is_query, is_key, paired, dtype, NORM)
            b = _weighed(b * scale, query_weight, key_weight, second, is_query, is_key, paired, dtype, NORM)
            if BLOCK_REST > 0:
                c = _weighed(c * scale, query_weight, key_weight, rest, is_query, is_key, resting, dtype, NORM)
                raw_c = tl.where(turns, c.to(dtype), raw_c)

        # The tables and each product are rounded to the input dtype, as the reference rounds them.
        row = (place if SHARED_TABLE else token) * TABLE_TOKEN
        cos_row = tl.load(cos + row + pair, mask=paired, other=0.0).to(dtype).to(tl.float32)
        sin_row = tl.load(sin + row + pair, mask=paired, other=0.0).to(dtype).to(tl.float32)
        turned_a = (a * cos_row).to(dtype).to(tl.float32) - (b * sin_row).to(dtype).to(tl.float32)
        turned_b = (b * cos_row).to(dtype).to(tl.float32) + (a * sin_row).to(dtype).to(tl.float32)
        turned_a, turned_b = turned_a.to(dtype), turned_b.to(dtype)
        tl.store(to_query + first, turned_a, mask=is_query & paired)
        tl.store(to_query + second, turned_b, mask=is_query & paired)
        tl.store(to_key + first, turned_a, mask=is_key & paired)
        tl.store(to_key + second, turned_b, mask=is_key & paired)
        tl.store(to_value + first, raw_a, mask=is_value & paired)
        tl.store(to_value + second, raw_b, mask=is_value & paired)
        if BLOCK_REST > 0:
            tl.store(to_query + rest, raw_c, mask=is_query & resting)
            tl.store(to_key + rest, raw_c, mask=is_key & resting)
            tl.store(to_value + rest, raw_c, mask=is_value & resting)

    @triton.jit
    def _weighed(normed, query_weight, key_weight, column, is_query, is_key, inside, dtype, NORM: tl.constexpr):
        weight = tl.load(query_weight + column, mask=is_query & inside, other=0.0).to(tl.float32)
        weight += tl.load(key_weight + column, mask=is_key & inside, other=0.0).to(tl.float32)
        if NORM == 2:
            return (normed * (1.0 + weight)).to(dtype).to(tl.float32)
        return (normed.to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)

    @triton.jit(
        do_not_specialize=["total", "splits", "key_batch", "key_head", "value_batch", "value_head", "mask_batch"]
    )
    def _decode_kernel(
        query,
        key,
        value,
        mask,
        out,
        partial,
        total,
        splits,
        key_batch,
        key_head,
        value_batch,
        value_head,
        mask_batch,
        scale,
        KEY_HEADS: tl.constexpr,
        GROUP: tl.constexpr,
        BLOCK_GROUP: tl.constexpr,
        HEAD: tl.constexpr,
        KEY_TOKEN: tl.constexpr,
        VALUE_TOKEN: tl.constexpr,
        UNIT: tl.constexpr,
        BLOCK_KEYS: tl.constexpr,
        SPLIT: tl.constexpr,
        SCAN: tl.constexpr,
    ):
        """One token's queries of one group against a share of the keys; strides come in ``UNIT`` elements."""
        program = tl.program_id(0).to(tl.int64)
        scale = tl.full([1, 1], scale, tl.float32)  # Inductor passes Python's floats as float64
        batch, kv_head = program // KEY_HEADS, program % KEY_HEADS
        member = tl.arange(0, BLOCK_GROUP)[:, None]
        column = tl.arange(0, HEAD)[None, :]
        queries = tl.load(query + (program * GROUP + member) * HEAD + column, mask=member < GROUP, other=0.0)
        first, last = 0, total
        if mask is not None:  # a static cache is mostly not written yet, and padding stands at an end
            first, last = total, 0
            for start in range(0, total, SCAN):
                place = start + tl.arange(0, SCAN)
                seen = tl.load(mask + batch * mask_batch + place, mask=place < total, other=0) != 0
                first = tl.minimum(first, tl.min(tl.where(seen, place, total), 0))
                last = tl.maximum(last, tl.max(tl.where(seen, place + 1, 0), 0))
        share = tl.cdiv(tl.cdiv(tl.maximum(last - first, 0), BLOCK_KEYS), splits) * BLOCK_KEYS
        begin = first + tl.program_id(1) * share
        end = tl.minimum(begin + share, last)
        keys = key + (batch * key_batch + kv_head * key_head) * UNIT
        values = value + (batch * value_batch + kv_head * value_head) * UNIT
        # A finite floor, so that a share without any visible key gives weight 0 and not NaN.
        peak = tl.full([BLOCK_GROUP], -1e30, tl.float32)
        weight = tl.zeros([BLOCK_GROUP], tl.float32)
        sums = tl.zeros([BLOCK_GROUP, HEAD], tl.float32)
        for start in range(begin, end, BLOCK_KEYS):
            place = start + tl.arange(0, BLOCK_KEYS)
            inside = place < end
            rows = place.to(tl.int64)[:, None]
            block = tl.load(keys + rows * KEY_TOKEN + column, mask=inside[:, None], other=0.0)
            logits = tl.dot(queries, tl.trans(block), input_precision="ieee") * (scale * 1.4426950408889634)  # log2(e)
            seen = inside
            if mask is not None:
                seen = seen & (tl.load(mask + batch * mask_batch + place, mask=inside, other=0) != 0)
            logits = tl.where(seen[None, :], logits, float("-inf"))
            higher = tl.maximum(peak, tl.max(logits, 1))
            fade = tl.exp2(peak - higher)
            shares = tl.exp2(logits - higher[:, None])
            block = tl.load(values + rows * VALUE_TOKEN + column, mask=inside[:, None], other=0.0)
            sums = sums * fade[:, None] + tl.dot(shares.to(block.dtype), block, input_precision="ieee")
            weight = weight * fade + tl.sum(shares, 1)
            peak = higher
        if not SPLIT:
            result = (sums / weight[:, None]).to(out.dtype.element_ty)
            tl.store(out + (program * GROUP + member) * HEAD + column, result, mask=member < GROUP)
        else:
            row = (program * splits + tl.program_id(1)) * GROUP
            tl.store(partial + (row + member) * HEAD + column, sums, mask=member < GROUP)
            rows_in_all = tl.num_programs(0).to(tl.int64) * splits * GROUP
            member = tl.arange(0, BLOCK_GROUP)
            tl.store(partial + rows_in_all * HEAD + row + member, peak, mask=member < GROUP)
            tl.store(partial + rows_in_all * (HEAD + 1) + row + member, weight, mask=member < GROUP)

    @triton.jit(do_not_specialize=["splits"])
    def _join_kernel(partial, out, splits, GROUP: tl.constexpr, HEAD: tl.constexpr, MAX_SPLITS: tl.constexpr):
        """One query head: its shares of the keys weighed against each other."""
        program = tl.program_id(0).to(tl.int64)
        split = tl.arange(0, MAX_SPLITS)
        inside = split < splits
        row = (program // GROUP * splits + split) * GROUP + program % GROUP
        rows_in_all = tl.num_programs(0).to(tl.int64) * splits
        peak = tl.load(partial + rows_in_all * HEAD + row, mask=inside, other=float("-inf"))
        weight = tl.load(partial + rows_in_all * (HEAD + 1) + row, mask=inside, other=0.0)
        fade = tl.exp2(peak - tl.max(peak, 0))
        column = tl.arange(0, HEAD)
        sums = tl.load(partial + row[:, None] * HEAD + column[None, :], mask=inside[:, None], other=0.0)
        result = tl.sum(sums * fade[:, None], 0) / tl.sum(weight * fade, 0)
        tl.store(out + program * HEAD + column, result.to(out.dtype.element_ty))

    _launch_heads, _launch_decode, _launch_join = (
        Launcher(_heads_kernel),
        Launcher(_decode_kernel),
        Launcher(_join_kernel),
    )
else:
    _launch_heads = _launch_decode = _launch_join = None


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length() if n else 0


def _tables(cos: torch.Tensor, sin: torch.Tensor) -> tuple[bool, int, torch.Tensor, torch.Tensor]:
    """Whether all sequences share the tables, and elements from one token's row to the next."""
    shared = cos.shape[0] == 1 or cos.stride(0) == sin.stride(0) == 0
    length = cos.shape[1]
    rows = length if shared else cos.shape[0] * length
    stride = cos.stride(0) if length == 1 and not shared else cos.stride(1)
    even = shared or length == 1 or cos.stride(0) == length * stride
    if (rows > 1 and not (even and cos.stride() == sin.stride())) or not cos.stride(-1) == sin.stride(-1) == 1:
        return shared, cos.shape[-1], cos.contiguous(), sin.contiguous()
    return shared, stride, cos, sin


def _ours(part: nn.Module | None) -> bool:
    """Whether the kernel may do this part's work: the interface itself, or the candidate of this folder."""
    return part is None or type(part) in INTERFACES or getattr(type(part), "absorbable", False)


@candidate("attention_block", lowering="inline")
class LlamaAttention(attention_block.LlamaAttention):
    """Inner parts that another candidate has replaced are called; attention beyond plain softmax is the part's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: attention_block.Update | None = None,
    ) -> torch.Tensor:
        parts = self._modules  # a plain dict: nn.Module's own look-up costs a microsecond a name
        qkv = _project(parts["qkv_proj"], hidden_states)
        if self._one_kernel(qkv):
            query, key, value = self._heads(qkv, cos, sin)  # type: ignore[arg-type] # tables come with a rotary_emb
        else:
            query, key, value = self._heads_by_parts(qkv, cos, sin)
        if update is not None:
            key, value = update(key, value)
        out = _attend(parts["attn"], query, key, value, mask)
        return _project(parts["o_proj"], out)

    def _one_kernel(self, qkv: torch.Tensor) -> bool:
        parts = self._modules
        q_norm = parts.get("q_norm")
        return (
            _launch_heads is not None
            and (qkv.is_cuda or INTERPRETED)
            and self.rotary_dim > 0
            and self.qk_norm != "full"
            and qkv.dtype != torch.float64
            and _ours(parts.get("rotary_emb"))
            and _ours(q_norm)
            and _ours(parts.get("k_norm"))
            and (q_norm is None or q_norm.weight.dtype == qkv.dtype)
            and not (torch.is_grad_enabled() and qkv.requires_grad)
        )

    def _heads(
        self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query (B, S, Hq, D), key and value (B, Hkv, S, D), all contiguous."""
        batch, length = qkv.shape[:2]
        heads, kv_heads, size, half = self.num_heads, self.num_kv_heads, self.head_dim, self.rotary_dim // 2
        query = qkv.new_empty((batch, length, heads, size))
        key = qkv.new_empty((batch, kv_heads, length, size))
        value = torch.empty_like(key)
        if batch * length:
            shared, table_token, cos, sin = _tables(cos, sin)
            q_norm, k_norm = self._modules.get("q_norm"), self._modules.get("k_norm")
            kind = NO_NORM if q_norm is None else GEMMA_NORM if isinstance(q_norm, GemmaRMSNorm) else RMS_NORM
            block = min(_power_of_two(heads + 2 * kv_heads), BLOCK_HEADS)
            weights = (None, None) if q_norm is None or k_norm is None else (q_norm.weight, k_norm.weight)
            _launch_heads(
                (batch * length, -(-(heads + 2 * kv_heads) // block)),
                (qkv if qkv.is_contiguous() else qkv.contiguous(), query, key, value, cos, sin, *weights),
                (length, 0.0 if q_norm is None else q_norm.eps),
                (
                    shared,
                    table_token,
                    heads,
                    kv_heads,
                    size,
                    half,
                    block,
                    _power_of_two(half),
                    _power_of_two(size - 2 * half),
                    self.is_neox_style,
                    kind,
                ),
                4,
            )
        return query, key, value

    def _heads_by_parts(
        self, qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = qkv.split(
            [self.num_heads * self.head_dim, *[self.num_kv_heads * self.head_dim] * 2], dim=-1
        )
        if self.qk_norm == "full":
            query, key = self.q_norm(query), self.k_norm(key)  # type: ignore[misc] # set with qk_norm
        query, key, value = (t.unflatten(-1, (-1, self.head_dim)) for t in (query, key, value))
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)  # type: ignore[misc] # set with qk_norm
        if self.rotary_emb is not None:
            query, key = attention_block.rotate(self.rotary_emb, query, key, cos, sin)  # type: ignore[arg-type]
        return query, key.transpose(1, 2), value.transpose(1, 2)


def _attend(
    attn: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Query (B, S, Hq, D), key and value (B, Hkv, T, D), to (B, S, Hq * D)."""
    batch, length, heads, _ = query.shape
    turned = query.transpose(1, 2)
    if (
        type(attn) is not Attention
        or attn.logits_soft_cap is not None
        or attn.sinks is not None
        or attn.sliding_window is not None
    ):
        out = attn(turned, key, value, mask)
    elif length == 1 and heads != key.shape[1] and (mask is None or mask.shape[1:3] == (1, 1)):
        if _decodes(query, key, value, mask):
            return _decode(query, key, value, mask, attn.scale)
        # All queries of a group see the same keys: rows of one attention, and neither keys nor values are repeated.
        if mask is not None and mask.dtype not in (torch.bool, query.dtype):
            mask = mask.to(query.dtype)
        grouped = query.reshape(batch, key.shape[1], -1, query.shape[3])
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=attn.scale)
        return out.reshape(batch, 1, -1)
    else:
        out = attn(turned, key, value, mask)
    return out.transpose(1, 2).reshape(batch, length, -1)


def _decodes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether one token's attention goes to the Triton kernel."""
    size, group = query.shape[3], query.shape[2] // key.shape[1]
    return (
        _launch_decode is not None
        and (query.is_cuda or (INTERPRETED and query.dtype != torch.bfloat16))  # the interpreter multiplies its bits
        and size in (16, 32, 64, 128, 256)
        and value.shape[3] == size
        and group <= MAX_GROUP
        and query.dtype == key.dtype == value.dtype != torch.float64
        and key.stride(3) == value.stride(3) == 1
        and (mask is None or (mask.dtype == torch.bool and mask.stride(3) == 1 and mask.shape[3] == key.shape[2]))
        and key.numel() > 0
        and not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad))
    )


def _decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    total, programs = key.shape[2], query.shape[0] * key.shape[1]
    block_keys, _ = SHORT_TILE if total <= SHORT else LONG_TILE
    splits = 1
    while splits < MAX_SPLITS and 2 * splits * programs <= DECODE_PROGRAMS and splits * 2 * block_keys <= total:
        splits *= 2
    if is_compiling_ahead():  # a probe's few keys are not split, those of a real context are
        _decode_in_splits(query, key, value, mask, scale, MAX_SPLITS)
    return _decode_in_splits(query, key, value, mask, scale, splits)


def _decode_in_splits(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    splits: int,
) -> torch.Tensor:
    batch, _, heads, size = query.shape
    kv_heads, total = key.shape[1], key.shape[2]
    group, programs = heads // kv_heads, batch * kv_heads
    block_keys, stages = SHORT_TILE if total <= SHORT else LONG_TILE
    out = query.new_empty((batch, 1, heads * size))
    partial = out
    if splits > 1:
        partial = torch.empty(batch * heads * splits * (size + 2), dtype=torch.float32, device=query.device)
    strides = (key.stride(0), key.stride(1), value.stride(0), value.stride(1))
    unit = 1 if any(s % 16 for s in strides) else 16  # told in units of 16 elements, loads stay 16 bytes wide
    mask_batch = 0 if mask is None or mask.shape[0] == 1 else mask.stride(0)
    _launch_decode(
        (programs, splits),
        (query if query.is_contiguous() else query.contiguous(), key, value, mask, out, partial),
        (
            total,
            splits,
            *[s // unit for s in strides],
            mask_batch,
            scale,
        ),
        (
            kv_heads,
            group,
            max(16, _power_of_two(group)),
            size,
            key.stride(2),
            value.stride(2),
            unit,
            block_keys,
            splits > 1,
            SCAN,
        ),
        4,
        stages,
    )
    if splits > 1:
        _launch_join((batch * heads, 1), (partial, out), (splits,), (group, size, MAX_SPLITS), 4)
    return out


def _project(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if type(linear) is not Linear:
        return linear(x)
    out = gemv(x, linear.weight, linear.bias) if is_compiling() else None
    return F.linear(x, linear.weight, linear.bias) if out is None else out
