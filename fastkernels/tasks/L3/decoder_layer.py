"""decoder_layer: norms, attention block, feed-forward and the residual stream between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.layer_norm import LayerNorm
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2 import attention_block
from fastkernels.tasks.L2.attention_block import LlamaAttention, Update
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from fastkernels.tasks.registry import get_task
from fastkernels.tasks.task import Case, Cost, Task

NORMS: Mapping[str, type[Interface]] = {"rms_norm": RMSNorm, "gemma_rms_norm": GemmaRMSNorm, "layer_norm": LayerNorm}
# Norms of each wiring, in the order in which a layer applies them.
WIRINGS: Mapping[str, tuple[str, ...]] = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "parallel": ("input_layernorm",),
    "parallel_two_norms": ("input_layernorm", "post_attention_layernorm"),
}


def add_and_norm(norm: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(norm(x + residual), x + residual)``, fused where the norm can."""
    if isinstance(norm, LayerNorm):
        total = residual + x
        return norm(total), total
    return norm(x, residual)


class LlamaDecoderLayer(Interface):
    """A decoder layer; ``pre`` is Llama's wiring, ``sandwich`` Gemma 2's, ``post`` OLMo 2's, ``parallel`` Phi's.

    Args:
        attention: constructor facts of task ``attention_block``.
        mlp: constructor facts of task ``mlp_task``, such as ``gated_mlp`` or ``mlp``.
        norm: constructor facts of task ``norm_task``, the same for all norms.
        wiring: one of ``WIRINGS``.

    ``forward(hidden_states, cos, sin, mask=None, update=None)`` as task ``attention_block``; returns the new residual
    stream (B, S, hidden_size). State: that of ``self_attn``, ``mlp`` and the wiring's norms under those names; a norm
    fused with the add before it keeps its weight in ``.norm.weight``.
    """

    def __init__(
        self,
        attention: Mapping[str, Any],
        mlp: Mapping[str, Any],
        norm: Mapping[str, Any],
        *,
        mlp_task: str = "gated_mlp",
        norm_task: str = "rms_norm",
        wiring: str = "pre",
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.self_attn = LlamaAttention(**attention)
        self.mlp = get_task(mlp_task).interface(**mlp)
        for name in WIRINGS[wiring]:
            fused = name in fused_norms(wiring, norm_task, norm)
            late = {"late_cast": norm.get("late_cast", False)}
            built = FusedAddRMSNorm(norm["hidden_size"], norm["eps"], **late) if fused else NORMS[norm_task](**norm)
            setattr(self, name, built)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        x = hidden_states
        if self.wiring == "post":
            x = x + self.post_attention_layernorm(self.self_attn(x, cos, sin, mask, update))
            return x + self.post_feedforward_layernorm(self.mlp(x))
        normed = self.input_layernorm(x)
        attended = self.self_attn(normed, cos, sin, mask, update)
        if self.wiring == "parallel":
            return x + (attended + self.mlp(normed))
        if self.wiring == "parallel_two_norms":
            return x + (attended + self.mlp(self.post_attention_layernorm(x)))
        if self.wiring == "sandwich":
            normed, x = add_and_norm(self.pre_feedforward_layernorm, self.post_attention_layernorm(attended), x)
            return x + self.post_feedforward_layernorm(self.mlp(normed))
        normed, total = add_and_norm(self.post_attention_layernorm, attended, x)
        accumulate = getattr(self.mlp, "accumulate", None)
        if accumulate is not None and total is not x:  # a new tensor that nobody else has seen
            return accumulate(normed, total)
        return total + self.mlp(normed)


def fused_norms(wiring: str, norm_task: str, norm: Mapping[str, Any]) -> tuple[str, ...]:
    """The norms that follow a residual add directly and are built as task ``fused_add_rms_norm``."""
    if norm_task != "rms_norm" or norm.get("has_weight") is False:
        return ()
    return {"pre": ("post_attention_layernorm",), "sandwich": ("pre_feedforward_layernorm",)}.get(wiring, ())


def _norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.norm(x) if isinstance(module, FusedAddRMSNorm) else module(x)


class Witness(LlamaDecoderLayer):
    """Every add and norm on its own."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        norms = [getattr(self, name) for name in WIRINGS[self.wiring]]

        def attend(x: torch.Tensor) -> torch.Tensor:
            return self.self_attn(x, cos, sin, mask, update)

        x = hidden_states
        match self.wiring:
            case "pre":
                x = torch.add(attend(_norm(norms[0], x)), x)
                return torch.add(self.mlp(_norm(norms[1], x)), x)
            case "post":
                x = torch.add(_norm(norms[0], attend(x)), x)
                return torch.add(_norm(norms[1], self.mlp(x)), x)
            case "sandwich":
                x = torch.add(_norm(norms[1], attend(_norm(norms[0], x))), x)
                return torch.add(_norm(norms[3], self.mlp(_norm(norms[2], x))), x)
        return torch.add(torch.add(attend(_norm(norms[0], x)), self.mlp(_norm(norms[-1], x))), x)


class DropsTheResidual(LlamaDecoderLayer):
    """Cheat: returns the layer's update without the stream."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        return super().forward(hidden_states, cos, sin, mask, update) - hidden_states


class SkipsTheMlp(LlamaDecoderLayer):
    """Cheat: passes the stream through untouched, as layer skipping does."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> torch.Tensor:
        return hidden_states


def cases() -> Iterator[Case]:
    """Each wiring with each kind of norm it occurs with; Llama-3.1-8B's sizes."""
    inputs = {case.name: case for case in attention_block.cases()}
    small = dict(inputs["gqa"].init)
    mlp = {"hidden_size": 48, "intermediate_size": 80}
    norm = {"hidden_size": 48, "eps": 1e-5}
    for wiring, kind in (
        ("pre", "rms_norm"),
        ("pre", "layer_norm"),
        ("post", "rms_norm"),
        ("sandwich", "gemma_rms_norm"),
        ("sandwich", "rms_norm"),
        ("parallel", "layer_norm"),
        ("parallel_two_norms", "layer_norm"),
    ):
        init = {"attention": small, "mlp": mlp, "norm": norm, "norm_task": kind, "wiring": wiring}
        yield Case(name=f"{wiring}_{kind}", init=init, draw=inputs["gqa"].draw)
    for name in ("llama_1x2048", "llama_64x1"):
        llama = {
            "attention": dict(inputs[name].init),
            "mlp": {"hidden_size": 4096, "intermediate_size": 14336},
            "norm": {"hidden_size": 4096, "eps": 1e-5},
        }
        yield Case(name=name, init=llama, draw=inputs[name].draw, production=True)


def cost(
    module: LlamaDecoderLayer,
    hidden_states: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    update: Update | None = None,
) -> Cost:
    """The attention block's plus the feed-forward's weights and products; the stream read and written once."""
    attention = attention_block.cost(module.self_attn, hidden_states, cos, sin)
    weights = list(module.mlp.parameters())
    rows = hidden_states.numel() // hidden_states.shape[-1]
    matrices = sum(p.numel() for p in weights if p.dim() == 2)
    moved = sum(p.numel() * p.element_size() for p in weights)
    return Cost(bytes=attention.bytes + moved, flops=attention.flops + 2 * rows * matrices)


TASK = Task(
    name="decoder_layer",
    level=3,
    family="layer",
    interface=LlamaDecoderLayer,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(DropsTheResidual, SkipsTheMlp),
    accuracy=CONTRACTION,
    stems=("llama_decoder",),
    parts=("attention_block", "gated_mlp", "mlp", "fused_add_rms_norm", "rms_norm", "gemma_rms_norm", "layer_norm"),
)
