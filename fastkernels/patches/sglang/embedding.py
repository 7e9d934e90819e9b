"""Vocabulary of SGLang: the embedding, and the head, by whose weight the engine multiplies without calling it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.linear import tensor_parallel
from fastkernels.patches.sglang.running import invariance, layer_class, packed_or_quantised, wrapped_by_lora
from fastkernels.patches.site import Draws, Forward, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param, tensor_of

IN_LOGITS_PROCESSOR = "LogitsProcessor multiplies by its weight itself and never calls the head"


def embedding(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``VocabParallelEmbedding`` of one rank, its padding rows included."""
    if layer_class(module) != "VocabParallelEmbedding":
        return
    count, width = tensor_of(module, "weight").shape
    split = "its vocabulary is split over ranks" if tensor_parallel(module) > 1 else ""
    real = min(count, int(vars(module)["num_embeddings"]))  # the rest is padding

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, rows in enumerate([9, 1]):
            ids = draw.integers(rows, high=real, salt=salt)
            yield lambda forward, ids=ids: [forward(ids)]  # type: ignore[misc] # a default binds ids early

        def ends(forward: Forward) -> list[torch.Tensor]:
            return [forward(torch.tensor([0, real - 1], device=draw.device))]

        yield ends

    yield Proposal(
        task="embedding",
        facts={"num_embeddings": count, "embedding_dim": width, "padding_idx": None},
        state={"weight": Param("weight")},
        enter=one_tensor,
        scenarios=scenarios,
        evidence="class",
        reads=("quant_method", "tp_size"),
        on_live_weights=True,
        gated=invariance(host) or packed_or_quantised(module) or wrapped_by_lora(module) or split,
    )


def logits(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """The head, or the embedding in its place where both are one."""
    head = getattr(host.model, "lm_head", None)
    tied = bool(getattr(getattr(host.model, "config", None), "tie_word_embeddings", False))
    shared = layer_class(module) == "VocabParallelEmbedding" and (head is module or (head is None and tied))
    if not shared and layer_class(module) != "ParallelLMHead":
        return
    rows, width = tensor_of(module, "weight").shape
    biased = module._parameters.get("bias") is not None
    yield Proposal(
        task="linear",
        facts={"input_size": width, "output_size": rows, "bias": biased},
        state={"weight": Param("weight")} | ({"bias": Param("bias")} if biased else {}),
        enter=one_tensor,
        scenarios=lambda draw: iter(()),
        evidence="class",
        gated=IN_LOGITS_PROCESSOR,
    )
