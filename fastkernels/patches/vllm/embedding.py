"""vLLM's token embedding on one rank; a vocabulary spread over ranks is only reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param
from fastkernels.patches.vllm.engine import closed, gated, is_a, placement, runs_forward_of

FILE = "vllm.model_executor.layers.vocab_parallel_embedding:"


def embedding(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``VocabParallelEmbedding``, which may be the head as well; a head alone is never called."""
    if not is_a(module, FILE + "VocabParallelEmbedding") or is_a(module, FILE + "ParallelLMHead"):
        return
    reason = _why_closed(module, host)
    if reason:
        yield gated("embedding", reason)
        return
    count, width = module._parameters["weight"].shape  # type: ignore[union-attr] # there: nothing is closed

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        ids = draw.integers(9, high=count)
        yield lambda forward: [forward(ids)]
        ends = torch.tensor([0, count - 1], device=draw.device, dtype=torch.int32)
        yield lambda forward: [forward(ends)]

    yield Proposal(
        task="embedding",
        facts={"num_embeddings": count, "embedding_dim": width},
        state={"weight": Param("weight")},
        enter=enter,
        scenarios=scenarios,
        evidence="class",
        on_live_weights=True,
        runs_on=placement(host),
    )


def _why_closed(module: nn.Module, host: Host) -> str:
    method = type(module.quant_method).__name__
    reason = closed(module, host)
    if reason:
        return reason
    if method != "UnquantizedEmbeddingMethod":
        return f"quant method {method}: its table is not plain"
    if not runs_forward_of(module, FILE + "VocabParallelEmbedding"):
        return f"{type(module).__name__} has a forward of its own, which the task does not say"
    if module.tp_size != 1:
        return f"its vocabulary is spread over {module.tp_size} ranks; the task has the whole table"
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2:
        return "the engine packed its table; cpu_weights.keep_weights() before loading keeps it"
    return ""


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """Engines keep ids in int32."""
    call = one_tensor(args, kwargs)
    return call if isinstance(call, str) else (call[0].long(),)
