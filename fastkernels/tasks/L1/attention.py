"""attention: scaled dot-product attention over dense keys, with the windows, soft caps and sinks that models add.

Whatever torch's own ``scaled_dot_product_attention`` can express goes through it; the rest is written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class Attention(Interface):
    """Constructor as vLLM's ``Attention``; ``forward`` takes all keys and values, cached ones included.

    Args:
        num_heads, num_kv_heads: heads of the query, and of key and value (grouped queries).
        head_size: width of a query and key head.
        scale: of the logits; ``head_size ** -0.5`` if None.
        causal: without a mask, query i of S sees keys j <= T - S + i of T.
        sliding_window: besides, only keys j > T - S + i - sliding_window are seen, with a mask too.
        logits_soft_cap: logits become ``cap * tanh(logits / cap)`` (Gemma 2), before the mask.
        has_sinks: one more logit a head takes part in the softmax and carries no value (gpt-oss).

    ``forward(query, key, value, mask=None)``: query (B, Hq, S, D), key (B, Hkv, T, D), value (B, Hkv, T, Dv), to (B,
    Hq, S, Dv) in the dtype of the query. The mask broadcasts to (B, Hq, S, T): bool, True = attend, or float, added
    to the logits; it replaces ``causal``. Each query must see some key. State: ``sinks`` (num_heads,).
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float | None = None,
        num_kv_heads: int | None = None,
        *,
        causal: bool = True,
        sliding_window: int | None = None,
        logits_soft_cap: float | None = None,
        has_sinks: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, head_size
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.scale = head_size**-0.5 if scale is None else scale
        self.causal, self.sliding_window, self.logits_soft_cap = causal, sliding_window, logits_soft_cap
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if has_sinks else None

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        plain = self.logits_soft_cap is None and self.sinks is None
        length, total = query.shape[2], key.shape[2]
        window = self.sliding_window if self.sliding_window is not None and self.sliding_window < total else None
        # bool(): with symbolic sizes the comparison is one to be decided here, by a guard.
        is_causal = bool(plain and mask is None and self.causal and window is None and 1 < length == total)
        if not is_causal:
            mask = self._mask(query, total, window, mask)
        grouped = self.num_heads != self.num_kv_heads
        native_groups = plain and mask is None and key.shape[-1] == value.shape[-1] <= 256
        if grouped and not native_groups:
            key, value = (t.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for t in (key, value))
        if plain:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=is_causal,
                scale=self.scale,
                enable_gqa=grouped and native_groups,
            )
        logits = torch.matmul(query, key.transpose(-1, -2)) * self.scale
        if self.logits_soft_cap is not None:
            logits = torch.tanh(logits / self.logits_soft_cap) * self.logits_soft_cap
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        if self.sinks is not None:
            sinks = self.sinks.to(logits.dtype)[:, None, None].expand(*logits.shape[:-1], 1)
            logits = torch.cat((logits, sinks), dim=-1)
        weights = F.softmax(logits, dim=-1, dtype=compute_dtype(query)).to(query.dtype)
        return torch.matmul(weights[..., :total], value)

    def _mask(
        self, query: torch.Tensor, total: int, window: int | None, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The given mask, or causality, and the window; None where every key is seen."""
        length = query.shape[2]
        causal = mask is None and self.causal and length > 1
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        if not causal and window is None:
            return mask
        last = torch.arange(total - length, total, device=query.device)[:, None]
        keys = torch.arange(total, device=query.device)
        seen = keys <= last if causal else torch.ones_like(keys, dtype=torch.bool).expand(length, total)
        if window is not None:
            seen = seen & (keys > last - window)
        if mask is None:
            return seen
        return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, float("-inf"))


class Witness(Attention):
    """Grouped einsum in float32, the softmax from its definition, every rule from the positions."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        wide = compute_dtype(query)
        q = query.to(wide).unflatten(1, (self.num_kv_heads, -1))
        logits = (torch.einsum("bkgsd,bktd->bkgst", q, key.to(wide)) * self.scale).flatten(1, 2)
        if self.logits_soft_cap is not None:
            logits = self.logits_soft_cap * torch.tanh(logits / self.logits_soft_cap)
        length, total = logits.shape[-2:]
        ahead = torch.arange(total)[None, :] - (torch.arange(length)[:, None] + total - length)
        hidden = ahead > 0 if mask is None and self.causal else torch.zeros_like(ahead, dtype=torch.bool)
        if self.sliding_window is not None:
            hidden = hidden | (ahead <= -self.sliding_window)
        bias = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")).to(query.device, wide)
        if mask is not None:
            bias = bias + (
                torch.zeros_like(mask, dtype=wide).masked_fill(~mask, float("-inf"))
                if mask.dtype == torch.bool
                else mask.to(wide)
            )
        logits = logits + bias
        sinks = torch.full((self.num_heads,), float("-inf"), device=query.device)
        sinks = (sinks if self.sinks is None else self.sinks).to(wide)[:, None]
        peak = torch.maximum(logits.amax(-1), sinks)
        shares = torch.exp(logits - peak[..., None])
        shares = shares / (shares.sum(-1) + torch.exp(sinks - peak))[..., None]
        out = torch.einsum("bkgst,bktd->bkgsd", shares.unflatten(1, (self.num_kv_heads, -1)), value.to(wide))
        return out.flatten(1, 2).to(query.dtype)


class AlignsTopLeft(Attention):
    """Cheat: causality counted from the first key, wrong as soon as there is a cache."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if mask is None and self.causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return super().forward(query, key, value, mask)


class Forgets(Attention):
    """Cheat: none of the extras."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sinks, self.logits_soft_cap, self.sliding_window = None, None, None


class IgnoresTheMask(Attention):
    """Cheat: attends to padding."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().forward(query, key, value)


class DealsHeadsRoundRobin(Attention):
    """Cheat: query head h reads key head ``h % Hkv`` instead of ``h // group``."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        groups = self.num_heads // self.num_kv_heads
        dealt = query.unflatten(1, (groups, self.num_kv_heads)).transpose(1, 2).flatten(1, 2)
        out = super().forward(dealt, key, value, mask)
        return out.unflatten(1, (self.num_kv_heads, groups)).transpose(1, 2).flatten(1, 2)


def cases() -> Iterator[Case]:
    """Prefill, decode, chunks on a cache, cross; heads grouped; each extra; masks; Llama-3.1-8B and gpt-oss sizes."""

    def draw(
        batch: int,
        length: int,
        total: int,
        *,
        heads: int = 6,
        kv: int = 2,
        size: int = 16,
        v_size: int | None = None,
        mask: str = "",
        scale: float = 1.0,
    ) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            shapes = ((batch, heads, length, size), (batch, kv, total, size), (batch, kv, total, v_size or size))
            qkv = [torch.randn(shape, generator=g).to(device, dtype) for shape in shapes]
            qkv[0] = qkv[0] * scale
            if not mask:
                return tuple(qkv)
            seen = torch.rand(batch, 1, length, total, generator=g) < 0.7
            seen[..., -1:] = True
            bias = torch.randn(batch, heads, length, total, generator=g).masked_fill(~seen, torch.finfo(dtype).min)
            return (*qkv, seen.to(device) if mask == "bool" else bias.to(device, dtype))

        return arguments

    base: dict[str, Any] = {"num_heads": 6, "head_size": 16, "num_kv_heads": 2}
    extras: dict[str, Any] = {"sliding_window": 4, "logits_soft_cap": 2.0, "has_sinks": True}
    for name, init in {"gqa": base, **{key: {**base, key: extra} for key, extra in extras.items()}}.items():
        yield Case(name=f"{name}_prefill", init=init, draw=draw(2, 9, 9))
        yield Case(name=f"{name}_decode", init=init, draw=draw(3, 1, 11))
        yield Case(name=f"{name}_chunk", init=init, draw=draw(1, 5, 12))
        yield Case(name=f"{name}_bool_mask", init=init, draw=draw(2, 4, 7, mask="bool"))
        yield Case(name=f"{name}_float_mask", init=init, draw=draw(2, 4, 7, mask="float"))
    yield Case(name="all_extras", init={**base, **extras}, draw=draw(2, 7, 13))
    yield Case(name="cross", init={**base, "causal": False}, draw=draw(2, 5, 8))
    yield Case(
        name="mha_scaled",
        init={"num_heads": 3, "head_size": 20, "scale": 0.5},
        draw=draw(1, 7, 7, heads=3, kv=3, size=20),
    )
    yield Case(name="wide_value", init=base, draw=draw(2, 6, 6, v_size=24))
    yield Case(name="large_logits", init=base, draw=draw(1, 6, 6, scale=100.0))
    yield Case(name="one_key", init=base, draw=draw(2, 1, 1))
    yield Case(name="empty", init=base, draw=draw(0, 4, 4))
    llama: dict[str, Any] = {"num_heads": 32, "head_size": 128, "num_kv_heads": 8}
    oss: dict[str, Any] = {
        "num_heads": 64,
        "head_size": 64,
        "num_kv_heads": 8,
        "has_sinks": True,
        "sliding_window": 128,
    }
    for batch, length, total in ((1, 2048, 2048), (1, 8192, 8192), (64, 1, 4096)):
        sizes = f"{batch}x{length}x{total}"
        yield Case(
            name=f"llama_{sizes}",
            init=llama,
            draw=draw(batch, length, total, heads=32, kv=8, size=128),
            production=True,
        )
        yield Case(
            name=f"gpt_oss_{sizes}", init=oss, draw=draw(batch, length, total, heads=64, kv=8, size=64), production=True
        )


def cost(
    module: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> Cost:
    """All tensors once; two contractions over the pairs that causality and window leave (a float mask hides none)."""
    batch, heads, length, width = query.shape
    total, out_width = key.shape[2], value.shape[-1]
    newest = torch.arange(total - length, total)
    last = newest if mask is None and module.causal else torch.full_like(newest, total - 1)
    first = torch.zeros_like(last) if module.sliding_window is None else newest - module.sliding_window + 1
    pairs = batch * heads * int((last - first.clamp_min(0) + 1).sum())
    if mask is not None and mask.dtype == torch.bool:
        pairs = min(pairs, int(mask.expand(batch, heads, length, total).sum()))
    written = batch * heads * length * out_width * query.element_size()
    return Cost(
        bytes=element_bytes(query, key, value, mask, module.sinks) + written, flops=2 * pairs * (width + out_width)
    )


TASK = Task(
    name="attention",
    level=1,
    family="attention",
    interface=Attention,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(AlignsTopLeft, Forgets, IgnoresTheMask, DealsHeadsRoundRobin),
    accuracy=CONTRACTION,
    stems=("dense_attention",),
)
