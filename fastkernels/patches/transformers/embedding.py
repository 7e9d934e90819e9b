"""Embeddings: ``nn.Embedding`` as it is; a subclass (scaled, frozen, quantised) computes something of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Forward, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param


def embedding(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """The exact class, without ``max_norm``, which would rescale the rows that it reads."""
    if type(module) is not nn.Embedding or module.max_norm is not None or module.weight.is_sparse:
        return
    if not module.weight.is_floating_point():
        return
    count, width = module.weight.shape

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, shape in enumerate([(2, 7), (1,)]):
            ids = draw.integers(*shape, high=count, salt=salt)
            yield lambda forward, ids=ids: [forward(ids)]  # type: ignore[misc] # a default binds ids early

        def ends(forward: Forward) -> list[torch.Tensor]:
            return [forward(torch.tensor([[0, count - 1]], device=draw.device))]

        yield ends

    yield Proposal(
        task="embedding",
        facts={"num_embeddings": count, "embedding_dim": width, "padding_idx": module.padding_idx},
        state={"weight": Param("weight")},
        enter=one_tensor,
        scenarios=scenarios,
        evidence="class",
        reads=("max_norm",),
        on_live_weights=True,
    )
