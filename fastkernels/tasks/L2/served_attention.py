"""served_attention: what surrounds a serving engine's attention: projections, qk-norm, RoPE by positions, output.

Attention itself, with its paged cache, batching and windows, is the engine's and comes as a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1 import rotary_emb
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

# (query, key, value), each (num_tokens, its heads * head_dim), to (num_tokens, num_heads * head_dim)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
QK_NORMS: dict[str, type[nn.Module]] = {"rms_norm": RMSNorm, "gemma_rms_norm": GemmaRMSNorm}


class ServedAttention(Interface):
    """The attention block of Llama-like decoders as engines call it; state names as vLLM's ``LlamaAttention``.

    Args:
        hidden_size: width of input and output.
        num_heads, num_kv_heads, head_dim: heads of this rank, and their width.
        rotary_dim: leading dims of each head that RoPE turns; all if None.
        max_position: rows of the RoPE table.
        rope_theta: base of the table that the block makes for itself; an engine's own is bound in its place.
        is_neox_style: half-split RoPE; else interleaved pairs.
        qkv_bias, o_bias: biases of the projections.
        qk_norm: None, ``rms_norm`` or ``gemma_rms_norm``: over each head of query and key, before RoPE.
        qk_norm_eps: of both norms.
        qk_norm_late_cast: as of task ``rms_norm``.

    ``forward(positions, hidden_states, attend)``: positions (num_tokens,) int64 below max_position; hidden_states
    (num_tokens, hidden_size); ``attend(query, key, value)`` the engine's attention, called once, on tensors
    (num_tokens, heads * head_dim) that it may keep. Returns (num_tokens, hidden_size), on each of several
    tensor-parallel ranks its own part of the sum.

    State: ``qkv_proj.weight`` ((num_heads + 2 num_kv_heads) * head_dim, hidden_size), ``o_proj.weight``,
    ``q_norm.weight``, ``k_norm.weight``, and the buffer ``rotary_emb.cos_sin_cache`` (max_position, rotary_dim).

    >>> block = ServedAttention(16, 2, 1, 8, max_position=32)
    >>> block(torch.arange(3), torch.randn(3, 16), lambda query, key, value: query).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rotary_dim: int | None = None,
        max_position: int = 8192,
        rope_theta: float = 1e4,
        is_neox_style: bool = True,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: str | None = None,
        qk_norm_eps: float = 1e-6,
        qk_norm_late_cast: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.widths = (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim)
        self.qkv_proj = Linear(hidden_size, sum(self.widths), bias=qkv_bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=o_bias)
        late = {"late_cast": True} if qk_norm_late_cast else {}
        self.q_norm = None if qk_norm is None else QK_NORMS[qk_norm](head_dim, qk_norm_eps, **late)
        self.k_norm = None if qk_norm is None else QK_NORMS[qk_norm](head_dim, qk_norm_eps, **late)
        turned = head_dim if rotary_dim is None else rotary_dim
        self.rotary_emb = RotaryEmbedding(head_dim, turned, max_position, rope_theta, is_neox_style)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> torch.Tensor:
        query, key, value = self.qkv_proj(hidden_states).split(self.widths, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self._by_head(self.q_norm, query), self._by_head(self.k_norm, key)
        query, key = self.rotary_emb(positions, query, key)
        return self.o_proj(attend(query, key, value))

    def _by_head(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return norm(x.unflatten(-1, (-1, self.head_dim))).flatten(-2)


class CachedAttention(nn.Module):
    """An ``attend`` that needs no engine: one sequence that sees a given cache, then itself causally.

    Args:
        keys, values: what is cached, (cached, num_kv_heads, head_dim): absolute positions show even in one token.
        scale: of the logits; ``head_dim ** -0.5`` if None.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, scale: float | None = None) -> None:
        super().__init__()
        self.keys, self.values, self.scale = keys, values, scale

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Query (num_tokens, num_heads * head_dim), key and value with their own heads, to the shape of query."""
        cached, _, head_dim = self.keys.shape

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None]

        keys, values = (
            torch.cat((past.to(new).transpose(0, 1)[None], heads(new)), dim=2)
            for past, new in ((self.keys, key), (self.values, value))
        )
        seen = torch.ones(len(query), keys.shape[2], dtype=torch.bool, device=query.device).tril(cached)
        out = nn.functional.scaled_dot_product_attention(
            heads(query), keys, values, seen, scale=self.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1).flatten(-2)


class Witness(ServedAttention):
    """Three projections, and RoPE as a complex product."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type] # the interface's own
        rotary_args, rotary_kwargs = self.rotary_emb.constructed_with
        self.rotary_emb = rotary_emb.Witness(*rotary_args, **rotary_kwargs)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> torch.Tensor:
        biases = (None,) * 3 if self.qkv_proj.bias is None else self.qkv_proj.bias.split(self.widths)
        query, key, value = (
            nn.functional.linear(hidden_states, weight, bias)
            for weight, bias in zip(self.qkv_proj.weight.split(self.widths), biases, strict=True)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self._by_head(self.q_norm, query), self._by_head(self.k_norm, key)
        query, _ = self.rotary_emb(positions, query, None)
        key, _ = self.rotary_emb(positions, key, None)
        return self.o_proj(attend(query, key, value))


class CountsFromZero(ServedAttention):
    """Cheat: as if each step were the start of a sequence."""

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> torch.Tensor:
        return super().forward(torch.arange(len(positions), device=positions.device), hidden_states, attend)


class SkipsTheNorm(ServedAttention):
    """Cheat: the plain block, also where query and key are normalised."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type] # the interface's own
        if self.q_norm is not None and self.k_norm is not None:
            self.unused = nn.ModuleList((self.q_norm, self.k_norm))
            self.q_norm = self.k_norm = None


class DropsTheEnginesAttention(ServedAttention):
    """Cheat: every token sees only itself, so that the engine's cache is never asked."""

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> torch.Tensor:
        groups = self.num_heads // self.num_kv_heads

        def own(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return value.unflatten(-1, (-1, self.head_dim)).repeat_interleave(groups, -2).flatten(-2)

        return super().forward(positions, hidden_states, own)


def cases() -> Iterator[Case]:
    """MHA, GQA, MQA, biases, qk-norms, partial and interleaved RoPE; one token and several, far into a sequence;
    Llama-3.1-8B's sizes."""
    base = {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "max_position": 256}
    for name, tokens, changes in (
        ("gqa", 9, {}),
        ("mha_bias", 7, {"num_kv_heads": 6, "qkv_bias": True, "o_bias": True}),
        ("mqa_partial", 5, {"num_kv_heads": 1, "rotary_dim": 8}),
        ("interleaved", 6, {"is_neox_style": False}),
        ("qk_norm", 6, {"qk_norm": "rms_norm"}),
        ("qk_norm_late", 6, {"qk_norm": "rms_norm", "qk_norm_late_cast": True}),
        ("qk_norm_gemma", 6, {"qk_norm": "gemma_rms_norm", "qk_norm_eps": 1e-5}),
        ("one_token", 1, {}),
    ):
        init = base | changes
        yield Case(name=name, init=init, draw=draw(init, tokens, cached=11))
    llama = {
        "hidden_size": 4096,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "max_position": 131072,
        "rope_theta": 5e5,
    }
    for tokens in (1, 64, 2048):
        yield Case(name=f"llama_{tokens}", init=llama, draw=draw(llama, tokens, cached=1024), production=True)


def draw(init: dict[str, float], tokens: int, *, cached: int) -> Draw:
    """Arguments for a block built from ``init``: a chunk of a sequence that skips some positions, and its cache."""

    def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[object, ...]:
        steps = torch.randint(1, 3, (tokens,), generator=g)
        positions = (cached + steps.cumsum(0)).to(device)
        x = torch.randn(tokens, int(init["hidden_size"]), generator=g).to(device, dtype)
        shape = (cached, int(init["num_kv_heads"]), int(init["head_dim"]))
        keys, values = (torch.randn(shape, generator=g).to(device, dtype) for _ in range(2))
        return positions, x, CachedAttention(keys, values)

    return arguments


def cost(module: ServedAttention, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> Cost:
    """All but attention: weights, input, output, what goes to attention and comes back, and one table row a token."""
    tokens, weights = len(hidden_states), list(module.parameters())
    matrices = sum(w.numel() for w in weights if w.dim() == 2)
    exchanged = tokens * (sum(module.widths) + module.widths[0]) * hidden_states.element_size()
    rotary = module.rotary_emb
    row = rotary.rotary_dim * rotary.cos_sin_cache.element_size()
    moved = element_bytes(hidden_states, hidden_states, positions, *weights) + exchanged + tokens * row
    turned = 3 * tokens * (module.num_heads + module.num_kv_heads) * rotary.rotary_dim
    return Cost(bytes=moved, flops=2 * tokens * matrices + turned)


TASK = Task(
    name="served_attention",
    level=2,
    family="attention",
    interface=ServedAttention,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(CountsFromZero, SkipsTheNorm, DropsTheEnginesAttention),
    accuracy=CONTRACTION,
    parts=("linear", "rms_norm", "gemma_rms_norm", "rotary_emb"),
)
