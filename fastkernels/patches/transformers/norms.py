"""Norms of transformers: Llama's, Gemma's, OLMo's and weightless RMS norms, and layer norms over the last axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param

EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_eps")
LLAMA = ("transformers.models.llama.modeling_llama:LlamaRMSNorm",)
GEMMA = ("transformers.models.gemma.modeling_gemma:GemmaRMSNorm",)
OLMO = ("transformers.models.olmo2.modeling_olmo2:Olmo2RMSNorm",)


def eps_of(module: nn.Module) -> tuple[str, float] | None:
    """Name and value of the norm's epsilon attribute."""
    for name in EPS_NAMES:
        value = module.__dict__.get(name)
        if isinstance(value, float):
            return name, value
    return None


def rows(width: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Scenarios for a module that takes one tensor (..., width): usual, large and small values, one row."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, (shape, scale) in enumerate([((2, 5, width), 1.0), ((3, 1, width), 40.0), ((1, 2, width), 1e-3)]):
            x = draw.normal(*shape, scale=scale, salt=salt)
            yield lambda forward, x=x: [forward(x.clone())]  # type: ignore[misc] # a default binds x early

    return scenarios


def rms_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Leaf modules with an epsilon and at most a weight vector, whatever their class is called."""
    eps = eps_of(module)
    if eps is None or module._modules or module._buffers or isinstance(module, nn.LayerNorm):
        return
    weight = module._parameters.get("weight")
    if set(module._parameters) - {"weight"} or (weight is not None and weight.dim() != 1):
        return
    width = _width(module, weight)
    if width is None:
        return
    common: dict[str, Any] = {"enter": one_tensor, "scenarios": rows(width), "reads": (eps[0],)}
    facts: dict[str, Any] = {"hidden_size": width, "eps": eps[1]}
    cls = type(module)
    if weight is None:
        yield Proposal(task="rms_norm", facts=facts | {"has_weight": False}, state={}, **common)
        return
    state = {"weight": Param("weight")}
    yield Proposal(task="rms_norm", facts=facts, state=state, evidence=evidence(cls, LLAMA), **common)
    late = facts | {"late_cast": True}
    yield Proposal(task="rms_norm", facts=late, state=state, evidence=evidence(cls, OLMO), **common)
    yield Proposal(task="gemma_rms_norm", facts=facts, state=state, evidence=evidence(cls, GEMMA), **common)


def _width(module: nn.Module, weight: torch.Tensor | None) -> int | None:
    if weight is not None:
        return weight.shape[0]
    for name in ("hidden_size", "dim", "normalized_shape"):
        value = module.__dict__.get(name)
        value = value[-1] if isinstance(value, tuple) and value else value
        if isinstance(value, int):
            return value
    return 64  # a norm without weight takes any width


def layer_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``nn.LayerNorm`` over one axis, and leaf modules with a weight and a bias vector that compute the same."""
    known = type(module) is nn.LayerNorm
    eps = eps_of(module)
    if eps is None or module._modules or module._buffers:
        return
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if set(module._parameters) - {"weight", "bias"} or (weight is not None and weight.dim() != 1):
        return
    if known and len(module.normalized_shape) != 1:  # type: ignore[arg-type] # a tuple on nn.LayerNorm
        return
    width = module.normalized_shape[0] if known else (None if weight is None else weight.shape[0])  # type: ignore[index]
    if width is None or (not known and not isinstance(module, nn.LayerNorm) and bias is None):
        return
    state = {name: Param(name) for name, tensor in (("weight", weight), ("bias", bias)) if tensor is not None}
    yield Proposal(
        task="layer_norm",
        facts={"hidden_size": width, "eps": eps[1], "weight": weight is not None, "bias": bias is not None},
        state=state,
        enter=one_tensor,
        scenarios=rows(int(width)),
        evidence="class" if known else "schema",
        reads=(eps[0],),
    )
