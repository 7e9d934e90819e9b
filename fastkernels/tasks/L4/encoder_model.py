"""encoder_model: the whole stack of encoder layers, between the embeddings and the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L2.encoder_attention import draw
from fastkernels.tasks.L3 import encoder_layer
from fastkernels.tasks.L3.encoder_layer import EncoderLayer
from fastkernels.tasks.task import Case, Cost, Task


class EncoderModel(Interface):
    """``num_layers`` equal layers, one after the other.

    Args:
        num_layers: how many.
        layer: constructor facts of task ``encoder_layer``, the same for all.

    ``forward(hidden_states, mask=None)`` as task ``encoder_layer``. State: that of each layer under ``layers.{i}``.
    """

    def __init__(self, num_layers: int, layer: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(**layer) for _ in range(num_layers))

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return hidden_states


class Witness(EncoderModel):
    """Sequence by sequence."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        rows = []
        for i in range(hidden_states.shape[0]):
            own = mask if mask is None or mask.shape[0] == 1 else mask[i : i + 1]
            rows.append(super().forward(hidden_states[i : i + 1], own))
        return torch.cat(rows)


class SkipsTheLastLayer(EncoderModel):
    """Cheat: leaves early."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for layer in list(self.layers)[:-1]:
            hidden_states = layer(hidden_states, mask)
        return hidden_states


class MasksOnce(EncoderModel):
    """Cheat: padding is hidden from the first layer only."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            hidden_states, mask = layer(hidden_states, mask), None
        return hidden_states


def cases() -> Iterator[Case]:
    """Both wirings, masks of both kinds, one layer, one token; BERT-base's size."""
    layer = {"hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 48}
    post = {"num_layers": 2, "layer": layer}  # a third would leave too little of what tells tokens apart
    pre = {"num_layers": 3, "layer": layer | {"wiring": "pre", "eps": 1e-6}}
    yield Case(name="post", init=post, draw=draw(2, 7, 32))
    yield Case(name="pre", init=pre, draw=draw(2, 7, 32))
    yield Case(name="bool_mask", init=post, draw=draw(2, 7, 32, mask="bool"))
    yield Case(name="float_mask", init=pre, draw=draw(2, 7, 32, mask="float"))
    yield Case(name="one_layer", init=post | {"num_layers": 1}, draw=draw(1, 5, 32))
    yield Case(name="one_token", init=post, draw=draw(3, 1, 32))
    bert = {"hidden_size": 768, "num_heads": 12, "head_dim": 64, "intermediate_size": 3072}
    base = {"num_layers": 12, "layer": bert}
    yield Case(name="bert_base_32x512", init=base, draw=draw(32, 512, 768, mask="bool"), production=True)


def cost(module: EncoderModel, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> Cost:
    """The layers' one after the other: a stream between two layers is written and read."""
    each = [encoder_layer.cost(layer, hidden_states, mask) for layer in module.layers]  # type: ignore[arg-type] # ours
    return Cost(bytes=sum(c.bytes for c in each), flops=sum(c.flops for c in each))


TASK = Task(
    name="encoder_model",
    level=4,
    family="model",
    interface=EncoderModel,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SkipsTheLastLayer, MasksOnce),
    accuracy=CONTRACTION,
    stems=("bert_encoder", "vision_encoder"),
    parts=("encoder_layer",),
)
