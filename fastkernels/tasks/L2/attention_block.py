"""attention_block: projections, optional qk-norm, RoPE, attention against an optional cache, output projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.attention import Attention
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

Update = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
QK_NORMS: dict[str, type[nn.Module]] = {"rms_norm": RMSNorm, "gemma_rms_norm": GemmaRMSNorm}


class LlamaAttention(Interface):
    """The attention block of Llama-like decoders; state names as vLLM's ``LlamaAttention``.

    Args:
        hidden_size: width of input and output.
        num_heads, num_kv_heads, head_dim: heads of query, of key and value, and their width.
        rotary_dim: leading dims of each head that RoPE turns; 0 for none.
        is_neox_style: half-split RoPE; else interleaved pairs.
        qkv_bias, o_bias: biases of the projections.
        qk_norm: None, ``head`` (over head_dim) or ``full`` (over all heads); before RoPE.
        qk_norm_kind: ``rms_norm`` or ``gemma_rms_norm``.
        scale: of the logits; ``head_dim ** -0.5`` if None.
        causal, logits_soft_cap, has_sinks: as task ``attention``.

    ``forward(hidden_states, cos, sin, mask=None, update=None)``: hidden_states (B, S, hidden_size); cos and sin
    (B or 1, S, rotary_dim // 2), or None where rotary_dim is 0; mask as task ``attention`` takes it; ``update(key,
    value)``, both (B, Hkv, S, head_dim) after RoPE, appends to a cache and returns all keys and values so far.
    Returns (B, S, hidden_size).

    State: ``qkv_proj.weight`` ((Hq + 2 Hkv) * head_dim, hidden_size), ``o_proj.weight``, ``q_norm.weight``,
    ``k_norm.weight``, ``attn.sinks``.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rotary_dim: int | None = None,
        is_neox_style: bool = True,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: str | None = None,
        qk_norm_kind: str = "rms_norm",
        qk_norm_eps: float = 1e-6,
        scale: float | None = None,
        causal: bool = True,
        logits_soft_cap: float | None = None,
        has_sinks: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rotary_dim = head_dim if rotary_dim is None else rotary_dim
        self.is_neox_style, self.qk_norm = is_neox_style, qk_norm
        self.qkv_proj = Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=o_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if qk_norm is not None:
            widths = (head_dim, head_dim) if qk_norm == "head" else (num_heads * head_dim, num_kv_heads * head_dim)
            self.q_norm, self.k_norm = (QK_NORMS[qk_norm_kind](width, qk_norm_eps) for width in widths)
        # The tables come with each call, so this one needs none of its own: one position.
        self.rotary_emb = RotaryEmbedding(head_dim, self.rotary_dim, 1, 1e4, is_neox_style) if self.rotary_dim else None
        self.attn = Attention(
            num_heads,
            head_dim,
            head_dim**-0.5 if scale is None else scale,
            num_kv_heads,
            causal=causal,
            logits_soft_cap=logits_soft_cap,
            has_sinks=has_sinks,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        batch, length = hidden_states.shape[:2]
        widths = [self.num_heads * self.head_dim, *[self.num_kv_heads * self.head_dim] * 2]
        query, key, value = self.qkv_proj(hidden_states).split(widths, dim=-1)
        if self.qk_norm == "full":
            query, key = self.q_norm(query), self.k_norm(key)  # type: ignore[misc] # set with qk_norm
        query, key, value = (t.unflatten(-1, (-1, self.head_dim)) for t in (query, key, value))
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)  # type: ignore[misc] # set with qk_norm
        if self.rotary_emb is not None:
            query, key = rotate(self.rotary_emb, query, key, cos, sin)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if update is not None:
            key, value = update(key, value)
        out = self.attn(query, key, value, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def rotate(
    rotary: nn.Module, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE by given tables through any ``rotary_emb`` candidate.

    One with a ``rotate`` method gets the tables; one that only has ``forward(positions, query, key)`` finds them in
    its ``cos_sin_cache``, one row a token.
    """
    if hasattr(rotary, "rotate"):
        return rotary.rotate(query, key, cos, sin)
    batch, length = query.shape[:2]
    table = torch.cat((cos, sin), dim=-1).expand(batch, length, -1).reshape(batch * length, -1)
    rotary.cos_sin_cache = table
    positions = torch.arange(batch * length, device=query.device)
    turned = rotary(positions, query.reshape(batch * length, -1), key.reshape(batch * length, -1))
    return turned[0].view(query.shape), turned[1].view(key.shape)


class Witness(LlamaAttention):
    """Three projections, and attention written out with a float softmax."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        widths = [self.num_heads * self.head_dim, *[self.num_kv_heads * self.head_dim] * 2]
        biases = (None,) * 3 if self.qkv_proj.bias is None else self.qkv_proj.bias.split(widths)
        q, k, v = (
            nn.functional.linear(hidden_states, w, b)
            for w, b in zip(self.qkv_proj.weight.split(widths), biases, strict=True)
        )
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)  # type: ignore[misc] # set with qk_norm
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)  # type: ignore[misc] # set with qk_norm
        if self.rotary_emb is not None:
            q, k = self.rotary_emb.rotate(q, k, cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if update is not None:
            k, v = update(k, v)
        groups = self.num_heads // self.num_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        logits = torch.matmul(q, k.transpose(-1, -2)) * self.attn.scale
        if self.attn.logits_soft_cap is not None:
            logits = self.attn.logits_soft_cap * torch.tanh(logits / self.attn.logits_soft_cap)
        if mask is None and self.attn.causal:
            ahead = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])
            logits = logits.masked_fill(ahead.to(logits.device), float("-inf"))
        elif mask is not None:
            logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        weights = torch.softmax(logits, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        return self.o_proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))


class SkipsRope(LlamaAttention):
    """Cheat: positions do not matter."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        if cos is not None and sin is not None:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        return super().forward(hidden_states, cos, sin, mask, update)


class IgnoresTheMask(LlamaAttention):
    """Cheat: attends to padding."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        return super().forward(hidden_states, cos, sin, None, update)


def cases() -> Iterator[Case]:
    """MHA, GQA, MQA, qk-norms, partial and interleaved RoPE, none, padding; one token; Llama-3.1-8B's sizes."""

    def draw(batch: int, length: int, width: int, rotary: int, *, padded: bool = False) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[object, ...]:
            x = torch.randn(batch, length, width, generator=g).to(device, dtype)
            if not rotary:
                return (x, None, None)
            angles = torch.rand(batch, length, rotary // 2, generator=g) * 6.0
            tables = (angles.cos().to(device, dtype), angles.sin().to(device, dtype))
            if not padded:
                return (x, *tables)
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None].repeat(batch, 1, 1, 1)
            mask[0, :, 1:, 0] = False  # the first token of the first row is padding
            return (x, *tables, mask.to(device))

        return arguments

    base = {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16}
    yield Case(name="gqa", init=base, draw=draw(2, 9, 48, 16))
    yield Case(name="mha", init=base | {"num_kv_heads": 6, "qkv_bias": True, "o_bias": True}, draw=draw(2, 7, 48, 16))
    yield Case(name="mqa_partial", init=base | {"num_kv_heads": 1, "rotary_dim": 8}, draw=draw(1, 5, 48, 8))
    yield Case(name="interleaved", init=base | {"is_neox_style": False}, draw=draw(2, 6, 48, 16))
    yield Case(name="qk_norm_head", init=base | {"qk_norm": "head"}, draw=draw(2, 6, 48, 16))
    yield Case(
        name="qk_norm_full_gemma",
        init=base | {"qk_norm": "full", "qk_norm_kind": "gemma_rms_norm"},
        draw=draw(2, 6, 48, 16),
    )
    yield Case(name="no_rope", init=base | {"rotary_dim": 0, "causal": False}, draw=draw(2, 6, 48, 0))
    yield Case(name="soft_cap", init=base | {"logits_soft_cap": 5.0, "scale": 1.0}, draw=draw(2, 6, 48, 16))
    yield Case(name="padded", init=base, draw=draw(2, 9, 48, 16, padded=True))
    yield Case(name="one_token", init=base, draw=draw(3, 1, 48, 16))
    llama = {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    for batch, length in ((1, 2048), (8, 2048), (64, 1)):
        yield Case(name=f"llama_{batch}x{length}", init=llama, draw=draw(batch, length, 4096, 128), production=True)


def cost(
    module: LlamaAttention,
    hidden_states: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    update: Update | None = None,
) -> Cost:
    """Without a cache: weights, input and output once; causal attention does half of the square."""
    batch, length = hidden_states.shape[:2]
    matrices = sum(p.numel() for p in module.parameters() if p.dim() == 2)
    pairs = length * (length + 1) // 2 if module.attn.causal else length * length
    attention = 4 * batch * module.num_heads * module.head_dim * pairs
    moved = element_bytes(hidden_states, hidden_states, cos, sin, *module.parameters())
    return Cost(bytes=moved, flops=2 * batch * length * matrices + attention)


TASK = Task(
    name="attention_block",
    level=2,
    family="attention",
    interface=LlamaAttention,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SkipsRope, IgnoresTheMask),
    accuracy=CONTRACTION,
    stems=("llama_attention",),
    parts=("linear", "rms_norm", "gemma_rms_norm", "rotary_emb", "attention"),
)
