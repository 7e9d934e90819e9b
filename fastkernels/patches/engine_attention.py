"""What stands in for a serving engine's attention while probes run: the engine's own runs in its steps alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastkernels.patches.site import Draws, Site
from fastkernels.tasks.L2.served_attention import CachedAttention

CACHED = 7  # tokens that a stand-in has seen before
PROBED = "; attention stood in for in probes"  # added to the evidence of a site


class StandIn(CachedAttention):
    """Attention over a small cache of its own; deaf to what an engine says beside query, key and value."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
    ) -> torch.Tensor:
        return super().forward(query, key, value)


def attention_facts(block: nn.Module, sites: Mapping[str, Site], norms: list[str]) -> dict[str, Any]:
    """Constructor facts of task ``served_attention``: its own numbers and those of the sites in it; ``norms`` names
    those of query and key, which are alike."""
    qkv, out = sites["qkv_proj"].proposal.facts, sites["o_proj"].proposal.facts
    rows, rotary_dim = tuple(block.rotary_emb.cos_sin_cache.shape)  # type: ignore[misc] # a table
    facts = {
        "hidden_size": qkv["input_size"],
        "num_heads": block.num_heads,
        "num_kv_heads": block.num_kv_heads,
        "head_dim": block.head_dim,
        "rotary_dim": rotary_dim,
        "max_position": rows,
        "is_neox_style": block.rotary_emb.is_neox_style,
        "qkv_bias": qkv["bias"],
        "o_bias": out["bias"],
    }
    if norms:
        norm = sites[norms[0]].proposal
        facts |= {"qk_norm": norm.task, "qk_norm_eps": norm.facts["eps"]}
        facts |= {"qk_norm_late_cast": True} if norm.facts.get("late_cast") else {}
    return facts


def stand_in_for(block: nn.Module, draw: Draws) -> StandIn:
    """The stand-in for the attention of ``block``: the same on every call."""
    shape = (CACHED, block.num_kv_heads, block.head_dim)
    return StandIn(draw.normal(*shape, salt=90), draw.normal(*shape, salt=91))  # type: ignore[arg-type] # ints


def positions_for(block: nn.Module, draw: Draws, tokens: int, *, salt: int) -> torch.Tensor:
    """Any rows of the RoPE table, in any order: a step holds many sequences."""
    return draw.integers(tokens, high=len(block.rotary_emb.cos_sin_cache), salt=salt)  # type: ignore[arg-type] # a table


@contextmanager
def standing_in(block: nn.Module, attention: nn.Module) -> Iterator[None]:
    """``block`` with ``attention`` as its child ``attn``; the engine's own is back afterwards, come what may."""
    children = block._modules
    engine = children["attn"]
    children["attn"] = attention
    try:
        yield
    finally:
        children["attn"] = engine
