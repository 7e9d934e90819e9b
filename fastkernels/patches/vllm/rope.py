"""vLLM's rotary embeddings: one module that all layers share, its table a live buffer whatever scaling filled it.

The engine turns query and key in place and returns them; the task returns new tensors, and callers use those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario
from fastkernels.patches.source import Param
from fastkernels.patches.vllm.engine import closed, gated, is_a, placement, tensors
from fastkernels.patches.vllm.owners import passed_over, relied_on_in_place

FILES = "vllm.model_executor.layers.rotary_embedding."
ROPE = FILES + "base:RotaryEmbedding"
OTHERS = (
    FILES + "base:RotaryEmbeddingBase",
    FILES + "dual_chunk_rope:DualChunkRotaryEmbedding",
    FILES + "phi3_long_rope_scaled_rope:Phi3LongRoPEScaledRotaryEmbedding",
)
MROPE = FILES + "mrope:MRotaryEmbedding"
HEADS, KV_HEADS = 4, 2  # of a probe's calls; the module takes any number


def rotary_emb(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``RotaryEmbedding`` and the scaled kinds that differ from it in their table."""
    if not is_a(module, ROPE):
        if is_a(module, MROPE):
            yield gated("rotary_emb", "each token has three positions (time, height, width); the task has one")
        elif is_a(module, *OTHERS):
            yield gated("rotary_emb", f"{type(module).__name__} turns otherwise than by one table of all positions")
        return
    table = module._buffers.get("cos_sin_cache")
    reason = closed(module, host) or passed_over(module, host) or relied_on_in_place(module, host)
    if not reason and (table is None or table.dim() != 2):
        reason = "it has no table"
    if reason:
        yield gated("rotary_emb", reason)
        return
    assert table is not None
    size = int(module.head_size)  # type: ignore[arg-type] # an int on every RotaryEmbedding
    yield Proposal(
        task="rotary_emb",
        facts={
            "head_size": size,
            "rotary_dim": module.rotary_dim,
            "max_position_embeddings": table.shape[0],
            "base": float(module.base),  # type: ignore[arg-type] # a number on every RotaryEmbedding
            "is_neox_style": module.is_neox_style,
            "dtype": table.dtype,
        },
        state={"cos_sin_cache": Param("cos_sin_cache")},
        enter=enter,
        scenarios=_scenarios(size, table.shape[0]),
        evidence="class",
        on_live_weights=True,
        runs_on=placement(host),
    )


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """``(positions, query, key=None)``, tokens by (heads * head_size)."""
    if kwargs:
        args = (*args, *(kwargs[n] for n in ("positions", "query", "key")[len(args) :] if n in kwargs))
        if not kwargs.keys() <= {"positions", "query", "key"}:
            return f"called with {sorted(kwargs)}"
    if len(args) < 2 or len(args) > 3:
        return f"called with {len(args)} arguments"
    if args[0].dim() != 1 or args[1].dim() != 2:
        return f"positions of {args[0].dim()} and query of {args[1].dim()} dimensions; the task has 1 and 2"
    return args


def _scenarios(size: int, positions: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Query and key as views of one projection, as attention passes them: early and late positions, one token."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, (count, first) in enumerate([(7, 0), (5, positions - 5), (1, positions // 2)]):
            at = draw.integers(count, high=positions, salt=30 + salt) if salt == 0 else first
            at = at if salt == 0 else first + draw.integers(count, high=min(5, positions - first), salt=salt)
            qkv = draw.normal(count, (HEADS + 2 * KV_HEADS) * size, salt=salt)
            widths = [HEADS * size, KV_HEADS * size, KV_HEADS * size]

            def call(forward: Any, at: Any = at, qkv: Any = qkv, widths: Any = widths) -> list[Any]:
                query, key, _ = qkv.clone().split(widths, dim=-1)
                return tensors(forward(at, query, key))

            yield call

    return scenarios
