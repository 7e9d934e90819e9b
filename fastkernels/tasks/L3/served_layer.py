"""served_layer: a decoder layer as serving engines call it, with the residual stream beside the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2 import served_attention
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from fastkernels.tasks.L2.served_attention import Attend, ServedAttention
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

Reduce = Callable[[torch.Tensor], torch.Tensor]


class ServedDecoderLayer(Interface):
    """A pre-norm decoder layer in the convention of vLLM's ``LlamaDecoderLayer``.

    Args:
        attention: constructor facts of task ``served_attention``.
        mlp: constructor facts of task ``gated_mlp``.
        norm: constructor facts of task ``rms_norm``, the same for both norms.

    ``forward(positions, hidden_states, residual, attend, reduce=None)``: positions and ``attend`` as task
    ``served_attention``; hidden_states and residual (num_tokens, hidden_size), residual None in the first layer;
    ``reduce`` sums the outputs of attention block and MLP over tensor-parallel ranks. Returns ``(hidden_states,
    residual)``, whose sum is the residual stream after the layer.

    State: that of ``self_attn`` and ``mlp``, ``input_layernorm.weight``, ``post_attention_layernorm.norm.weight``.
    """

    def __init__(self, attention: Mapping[str, Any], mlp: Mapping[str, Any], norm: Mapping[str, Any]) -> None:
        super().__init__()
        self.self_attn = ServedAttention(**attention)
        self.mlp = LlamaMLP(**mlp)
        self.input_layernorm = RMSNorm(**norm)
        # Never without a residual: the task of the add and the norm after it.
        self.post_attention_layernorm = FusedAddRMSNorm(**norm)

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        attend: Attend,
        reduce: Reduce | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            x, residual = self.input_layernorm(hidden_states), hidden_states
        else:
            x, residual = self.input_layernorm(hidden_states, residual)
        x = self.self_attn(positions, x, attend)
        x, residual = self.post_attention_layernorm(x if reduce is None else reduce(x), residual)
        x = self.mlp(x)
        return x if reduce is None else reduce(x), residual


class Witness(ServedDecoderLayer):
    """Every add and norm on its own, on one stream."""

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        attend: Attend,
        reduce: Reduce | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stream = hidden_states if residual is None else torch.add(residual, hidden_states)
        out = self.self_attn(positions, self.input_layernorm(stream), attend)
        stream = torch.add(stream, out if reduce is None else reduce(out))
        out = self.mlp(self.post_attention_layernorm.norm(stream))
        return out if reduce is None else reduce(out), stream


class ForgetsTheResidual(ServedDecoderLayer):
    """Cheat: every layer is the first."""

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        attend: Attend,
        reduce: Reduce | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(positions, hidden_states, None, attend, reduce)


class SkipsTheMlp(ServedDecoderLayer):
    """Cheat: leaves the stream as attention made it."""

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        attend: Attend,
        reduce: Reduce | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, stream = super().forward(positions, hidden_states, residual, attend, reduce)
        return torch.zeros_like(out), stream


class SumsNothing(ServedDecoderLayer):
    """Cheat: keeps each rank's part for the whole."""

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        attend: Attend,
        reduce: Reduce | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(positions, hidden_states, residual, attend, None)


def cases() -> Iterator[Case]:
    """The first layer and a later one, qk-norm, one token, two ranks; Llama-3.1-8B's sizes."""
    inputs = {case.name: case for case in served_attention.cases()}

    def init(name: str, intermediate_size: int) -> dict[str, Any]:
        attention = dict(inputs[name].init)
        width = attention["hidden_size"]
        mlp = {"hidden_size": width, "intermediate_size": intermediate_size}
        return {"attention": attention, "mlp": mlp, "norm": {"hidden_size": width, "eps": 1e-5}}

    for name in ("gqa", "mha_bias", "qk_norm", "one_token"):
        yield Case(name=name, init=init(name, 80), draw=_draw(inputs[name], first=False))
    yield Case(name="first", init=init("gqa", 80), draw=_draw(inputs["gqa"], first=True))
    yield Case(name="two_ranks", init=init("gqa", 80), draw=_draw(inputs["gqa"], first=False, ranks=2))
    for name in ("llama_1", "llama_64", "llama_2048"):
        yield Case(name=name, init=init(name, 14336), draw=_draw(inputs[name], first=False), production=True)


def _draw(block: Case, *, first: bool, ranks: int = 1) -> Draw:
    def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        positions, x, attend = block.draw(g, device, dtype)
        residual = None if first else torch.randn(x.shape, generator=g).to(device, dtype)
        # As if every rank held what this one holds.
        return (positions, x, residual, attend) + ((lambda part: part * ranks,) if ranks > 1 else ())

    return arguments


def cost(
    module: ServedDecoderLayer,
    positions: torch.Tensor,
    hidden_states: torch.Tensor,
    residual: torch.Tensor | None,
    attend: Attend,
    reduce: Reduce | None = None,
) -> Cost:
    """The attention block's plus the MLP's weights and products, the norms' weights, and the residual in and out."""
    attention = served_attention.cost(module.self_attn, positions, hidden_states, attend)
    weights = list(module.mlp.parameters())
    norms = [*module.input_layernorm.parameters(), *module.post_attention_layernorm.parameters()]
    matrices = sum(w.numel() for w in weights if w.dim() == 2)
    moved = element_bytes(*weights, *norms, residual, hidden_states)
    return Cost(bytes=attention.bytes + moved, flops=attention.flops + 2 * len(hidden_states) * matrices)


TASK = Task(
    name="served_layer",
    level=3,
    family="layer",
    interface=ServedDecoderLayer,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(ForgetsTheResidual, SkipsTheMlp, SumsNothing),
    accuracy=CONTRACTION,
    parts=("served_attention", "gated_mlp", "fused_add_rms_norm", "rms_norm"),
)
