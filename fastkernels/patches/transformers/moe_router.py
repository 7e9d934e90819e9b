"""Routers of mixtures of experts: one matrix of logits, any scoring and grouping, outputs in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Leave, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param, Source, tensor_of, view
from fastkernels.patches.transformers.moe_layout import Layout, layout_of
from fastkernels.tasks.L2.moe_router import SCORINGS, TopKRouter

KNOWN = (
    "transformers.models.mixtral.modeling_mixtral:MixtralTopKRouter",
    "transformers.models.qwen3_moe.modeling_qwen3_moe:Qwen3MoeTopKRouter",
    "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe:Qwen3VLMoeTextTopKRouter",
    "transformers.models.deepseek_v2.modeling_deepseek_v2:DeepseekV2TopkRouter",
    "transformers.models.deepseek_v3.modeling_deepseek_v3:DeepseekV3TopkRouter",
    "transformers.models.granitemoe.modeling_granitemoe:GraniteMoeTopKRouter",
    "transformers.models.gpt_oss.modeling_gpt_oss:GptOssTopKRouter",
)
TOP_K_NAMES = ("top_k", "topk", "num_experts_per_tok")
GROUP_NAMES = ("num_group", "n_group", "num_groups")
SCALE_NAMES = ("routed_scaling_factor", "route_scale", "router_scaling_factor")
CORRECTION_NAMES = ("e_score_correction_bias", "expert_bias")
Scenarios = Callable[[Draws], Iterator[Scenario]]

DRAWN, KEPT = 96, 16  # tokens drawn for a probe, and how many of them, those whose choice is stable, are used
JITTER = 2.0**-6  # what a stable choice withstands on every logit: several roundings of bfloat16


@dataclass(frozen=True)
class Reading:
    """One way to read a router, its parameters by their names in it."""

    facts: Mapping[str, Any]
    state: Mapping[str, Param]
    layout: Layout
    reads: tuple[str, ...]


def moe_router(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules that turn tokens into (logits, weights, ids) with one matrix, whatever their scoring."""
    for reading in readings(module):
        facts, state = reading.facts, reading.state
        yield Proposal(
            task="moe_router",
            facts=facts,
            state=state,
            enter=enter_for(tensor_of(module, state["weight"].name), facts),
            leave=leave_for(reading.layout),
            scenarios=scenarios_for(module, facts, state, reading.layout),
            evidence=evidence(type(module), KNOWN),
            inner=tuple(n for n, c in module._modules.items() if c is not None),
            reads=reading.reads,
            drops=jitters(module),
        )


def readings(module: nn.Module, correction: Param | None = None) -> list[Reading]:
    """The ways to read a router by its attributes, the likeliest first.

    ``correction`` names a correction bias that an outer module owns and passes as the second argument.
    """
    if isinstance(module, nn.Linear) or not any(n in module.__dict__ for n in TOP_K_NAMES):
        return []
    takes = len(argument_names(type(module)))
    named = {n: t for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_floating_point()}
    own = [n for n in named if n.rpartition(".")[2] in CORRECTION_NAMES]
    matrices = [n for n, t in named.items() if t.dim() == 2 and n not in own]
    biases = [n for n in named if n not in own and n not in matrices]
    if len(matrices) != 1 or len(own) + (correction is not None) > 1 or takes != 1 + (correction is not None):
        return []
    experts, width = named[matrices[0]].shape
    if len(biases) > 1 or any(named[n].shape != (experts,) for n in (*biases, *own)):
        return []
    layout = layout_of(module, experts, width, takes)
    if layout is None:
        return []
    state = {"weight": Param(matrices[0])}
    if biases:
        state["bias"] = Param(biases[0])
    if own or correction is not None:
        state["e_score_correction_bias"] = Param(own[0]) if own else correction  # type: ignore[assignment] # one of them
    common = {
        "hidden_size": width,
        "num_experts": experts,
        "top_k": layout.top_k,
        "bias": bool(biases),
        "has_correction_bias": "e_score_correction_bias" in state,
        "float_logits": layout.float_logits,
        "float_weights": layout.float_weights,
    }
    attributes = (*TOP_K_NAMES, *GROUP_NAMES, *SCALE_NAMES, "topk_group", "norm_topk_prob", "topk_method")
    reads = tuple(n for n in attributes if n in module.__dict__)
    return [Reading(common | v, state, layout, reads) for v in _variants(module, experts)]


def _variants(module: nn.Module, experts: int) -> list[dict[str, Any]]:
    own = module.__dict__
    scorings = SCORINGS if own.get("scoring_func") != "sigmoid" else SCORINGS[::-1]
    renormalize = (True, False) if own.get("norm_topk_prob", True) else (False, True)
    scale = next((float(own[n]) for n in SCALE_NAMES if isinstance(own.get(n), (int, float))), 1.0)
    scales = (scale,) if scale == 1.0 else (scale, 1.0)
    groups = next((own[n] for n in GROUP_NAMES if isinstance(own.get(n), int)), 1)
    kept = own.get("topk_group") or groups
    grouping: list[dict[str, Any]] = [{}]
    if 1 < groups <= experts and experts % groups == 0 and kept < groups:
        best = [n for n in (2, 1) if n <= experts // groups]
        grouping = [{"num_groups": groups, "topk_groups": kept, "best_of_group": n} for n in best] + grouping
    return [
        {"scoring": s, "renormalize": r, "routed_scaling": x, **g}
        for g, x, r, s in product(grouping, scales, renormalize, scorings)
    ]


def jitters(module: nn.Module) -> bool:
    """The module multiplies its input by noise in training mode."""
    return any("jitter" in n and bool(v) for n, v in module.__dict__.items())


def enter_for(weight: torch.Tensor, facts: Mapping[str, Any]) -> Enter:
    """One tensor, its leading axes flattened as routers do."""
    width, float_logits = facts["hidden_size"], facts["float_logits"]

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        call = one_tensor(args, kwargs)
        if isinstance(call, str):
            return call
        x = call[0].reshape(-1, width)
        if x.itemsize < weight.itemsize and not float_logits:
            return f"tokens in {x.dtype}, router weights in {weight.dtype}"
        return (x,)

    return enter


def leave_for(layout: Layout) -> Leave | None:
    """The results in the router's own order."""
    if layout.order == (0, 1, 2):
        return None
    places = tuple(layout.order.index(i) for i in range(3))
    return lambda result, call: tuple(result[p] for p in places)


def stable_tokens(
    draw: Draws, module: nn.Module, facts: Mapping[str, Any], state: Mapping[str, Source]
) -> torch.Tensor:
    """(KEPT, width) random tokens whose experts stay the same when every logit moves by a few roundings.

    Top-k turns a rounding into another expert; a comparison is fair only where no rounding decides.
    """
    with torch.device("meta"):
        router = TopKRouter(**facts)
    for name, source in state.items():
        assert isinstance(source, Param)
        values = view(module, source).detach().float()
        router._parameters[name] = nn.Parameter(values, requires_grad=False)
    tokens = draw.normal(DRAWN, facts["hidden_size"], salt=1)
    logits = F.linear(tokens.float(), router.weight, router.bias)
    chosen = _chosen(router, logits)
    stable = torch.zeros(DRAWN, device=logits.device)
    for seed in range(6):
        noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)).to(logits.device) * 2 - 1
        moved = logits + noise * JITTER * (1 + logits.abs())
        stable += (_chosen(router, moved) == chosen).all(-1)
    return tokens[stable.argsort(descending=True, stable=True)[:KEPT]]


def _chosen(router: TopKRouter, logits: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, router.route(logits)[1], True)


def scenarios_for(module: nn.Module, facts: Mapping[str, Any], state: Mapping[str, Param], layout: Layout) -> Scenarios:
    """Stable tokens together and one alone; compares logits, a dense matrix of weights, and the sorted ids."""
    logits_at, weights_at, ids_at = layout.order

    def comparable(result: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        logits, weights, ids = result[logits_at], result[weights_at], result[ids_at]
        dense = weights.new_zeros(len(weights), facts["num_experts"]).scatter(-1, ids, weights)
        return [logits, dense, ids.sort(-1).values]

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        tokens = stable_tokens(draw, module, facts, state)
        yield lambda forward: comparable(forward(tokens.clone()))
        yield lambda forward: comparable(forward(tokens[:1].clone()))

    return scenarios
