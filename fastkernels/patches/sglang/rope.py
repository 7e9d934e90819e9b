"""Rotary embeddings of SGLang: the tables that the engine computed, whatever their scaling, turned as the task says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.bypass import walked_around
from fastkernels.patches.sglang.running import invariance, layer_class, runs_on
from fastkernels.patches.site import Draws, Forward, Proposal, Scenario
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.attention import argument_reason

ARGUMENTS = ("positions", "query", "key", "offsets", "fused_set_kv_buffer_arg", "backend")
# They differ in the table only, which is bound as it is.
ONE_TABLE = (
    "RotaryEmbedding",
    "Llama3RotaryEmbedding",
    "LinearScalingRotaryEmbedding",
    "YaRNScalingRotaryEmbedding",
    "DynamicNTKScalingRotaryEmbedding",
    "DynamicNTKAlphaRotaryEmbedding",
)
OF_IMAGES = ("MRotaryEmbedding", "YaRNScalingMRotaryEmbedding", "Ernie4_5_VLRotaryEmbedding")


def rotary_emb(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """One instance serves all layers of a model that share its constants."""
    cls = layer_class(module)
    if cls not in (*ONE_TABLE, *OF_IMAGES):
        return
    table = module.cos_sin_cache
    facts = {
        "head_size": module.head_size,
        "rotary_dim": module.rotary_dim,
        "max_position_embeddings": table.shape[0],
        "base": float(module.base),
        "is_neox_style": module.is_neox_style,
        "dtype": table.dtype,
    }
    images = "its positions have three rows, for time, height and width" if cls in OF_IMAGES else ""
    yield Proposal(
        task="rotary_emb",
        facts=facts,
        state={"cos_sin_cache": Param("cos_sin_cache")},
        enter=enter,
        scenarios=scenarios(facts),
        evidence="class",
        reads=("is_neox_style",),
        on_live_weights=True,
        runs_on=runs_on(host),
        gated=invariance(host) or images or walked_around(module, host),
    )


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """Positions of one row, query and key with their heads side by side. With ``fused_set_kv_buffer_arg`` the engine
    also writes the KV cache, and so such a call stays with it."""
    given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs if kwargs or len(args) != 3 else None
    if given is not None:
        for name, value in given.items():
            if value is not None and name not in ARGUMENTS[:3]:
                also = ", which also writes the KV cache" if name == ARGUMENTS[4] else ""
                return argument_reason(name, value) + also
        if any(given.get(n) is None for n in ARGUMENTS[:3]):
            return "query or key is not given"
        args = (given["positions"], given["query"], given["key"])
    positions, query, key = args
    if positions.dim() != 1 or query.dim() != 2 or key.dim() != 2:
        return f"positions, query and key of {positions.dim()}, {query.dim()} and {key.dim()} dimensions"
    return args


def scenarios(facts: Mapping[str, Any]) -> Callable[[Draws], Iterator[Scenario]]:
    """Query and key as halves of one product, with four and two heads, at positions all over the table."""
    size, rows = facts["head_size"], facts["max_position_embeddings"]

    def drawn(draw: Draws) -> Iterator[Scenario]:
        for salt, count in enumerate([9, 1]):
            both = draw.normal(count, 7 * size, salt=salt)
            positions = draw.integers(count, high=rows, salt=10 + salt)

            def turned(
                forward: Forward, both: torch.Tensor = both, positions: torch.Tensor = positions
            ) -> list[torch.Tensor]:
                query, key, _ = both.clone().split([4 * size, 2 * size, size], dim=-1)
                return list(forward(positions, query, key))

            yield turned

    return drawn
