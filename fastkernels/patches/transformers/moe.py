"""Experts held as stacked matrices, and the sparse blocks that route tokens to them, with shared experts or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param, Source, tensor_of
from fastkernels.patches.transformers.gated_mlp import activation_of
from fastkernels.patches.transformers.moe_router import (
    CORRECTION_NAMES,
    SCALE_NAMES,
    Scenarios,
    jitters,
    readings,
    stable_tokens,
)
from fastkernels.tasks.L2.gated_mlp import ACTIVATIONS

KNOWN_EXPERTS = ("transformers.models.mixtral.modeling_mixtral:MixtralExperts",)
KNOWN_BLOCKS = (
    "transformers.models.mixtral.modeling_mixtral:MixtralSparseMoeBlock",
    "transformers.models.qwen2_moe.modeling_qwen2_moe:Qwen2MoeSparseMoeBlock",
    "transformers.models.qwen3_moe.modeling_qwen3_moe:Qwen3MoeSparseMoeBlock",
    "transformers.models.olmoe.modeling_olmoe:OlmoeSparseMoeBlock",
    "transformers.models.deepseek_v3.modeling_deepseek_v3:DeepseekV3MoE",
    "transformers.models.granitemoe.modeling_granitemoe:GraniteMoeMoE",
)
CLONE_LIMIT = 2**28  # elements: a float32 clone of more than this (1 GiB) is not made, the live weights are probed


def fused_experts(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``gate_up_proj`` (experts, 2 inner, width) and ``down_proj`` (experts, width, inner), no biases."""
    w13, w2 = module._parameters.get("gate_up_proj"), module._parameters.get("down_proj")
    if w13 is None or w2 is None or w13.dim() != 3 or w2.dim() != 3 or len(list(module.parameters())) != 2:
        return
    experts, hidden, inner = w2.shape
    names = argument_names(type(module))
    if w13.shape != (experts, 2 * inner, hidden) or getattr(module, "num_experts", experts) != experts:
        return
    if len(names) != 3 or "weight" not in names[2]:
        return
    act = activation_of(module)
    for kind in ACTIVATIONS if act is None else (act,):
        yield Proposal(
            task="fused_experts",
            facts={
                "num_experts": experts,
                "hidden_size": hidden,
                "intermediate_size": inner,
                "hidden_act": kind,
            },
            state={"w13_weight": Param("gate_up_proj"), "w2_weight": Param("down_proj")},
            enter=_enter_experts(names),
            scenarios=_experts_scenarios(experts, hidden),
            evidence=evidence(type(module), KNOWN_EXPERTS),
            inner=tuple(n for n, c in module._modules.items() if c is not None),
            on_live_weights=large(module),
        )


def large(module: nn.Module) -> bool:
    """Too large to be cloned for a probe."""
    return sum(p.numel() for p in module.parameters()) > CLONE_LIMIT


def _enter_experts(names: Sequence[str]) -> Enter:
    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(given) != 3 or len(args) + len(kwargs) != 3 or not all(n in given for n in names):
            return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
        x, ids, weights = (given[n] for n in names)
        if x.dim() != 2 or ids.dim() != 2:
            return "tokens or ids have more than two dimensions"
        return x, weights, ids

    return enter


def _experts_scenarios(experts: int, hidden: int) -> Scenarios:
    """Usual and large tokens (a clamp would show), weights in the tokens' dtype and in float32, one token."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        top_k = min(2, experts)
        wide = torch.promote_types(draw.dtype, torch.float32)
        for salt, (count, scale, dtype) in enumerate([(12, 1.0, draw.dtype), (5, 40.0, wide), (1, 1.0, wide)]):
            x = draw.normal(count, hidden, scale=scale, salt=salt)
            first = draw.integers(count, 1, high=experts, salt=10 + salt)
            ids = (first + torch.arange(top_k, device=first.device)) % experts
            weights = draw.normal(count, top_k, salt=20 + salt).abs().to(dtype)
            yield lambda forward, x=x, ids=ids, w=weights: [forward(x.clone(), ids, w)]  # type: ignore[misc] # binds early

    return scenarios


def moe_block(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """A router, experts, and perhaps a shared expert with a gate of its own: found by what they compute."""
    children = {n: c for n, c in module._modules.items() if c is not None and any(True for _ in c.parameters())}
    experts = [n for n, c in children.items() if host.site(c, "fused_experts")]
    shared = [n for n, c in children.items() if host.site(c, "gated_mlp")]
    gates = [n for n, c in children.items() if type(c) is nn.Linear and c.weight.shape[0] == 1 and c.bias is None]
    routers = [n for n in children if n not in (*experts, *shared, *gates)]
    if len(experts) != 1 or len(routers) != 1 or len(shared) > 1 or len(gates) > len(shared):
        return
    expert = host.site(children[experts[0]], "fused_experts").proposal.facts
    facts = {
        "hidden_size": expert["hidden_size"],
        "intermediate_size": expert["intermediate_size"],
        "num_experts": expert["num_experts"],
        "hidden_act": expert["hidden_act"],
        "shared_gate": bool(gates),
    }
    state: dict[str, Source] = {}
    for name, part in ((experts[0], "experts"), *((n, "shared_expert") for n in shared)):
        task = "fused_experts" if part == "experts" else "gated_mlp"
        proposal = host.site(children[name], task).proposal
        state |= {f"{part}.{k}": source.under(name) for k, source in proposal.state.items()}
        if proposal.facts["hidden_act"] != facts["hidden_act"] or proposal.facts.get("bias"):
            return
        if part == "shared_expert":
            facts["shared_intermediate_size"] = proposal.facts["intermediate_size"]
    if gates:
        state["shared_expert_gate.weight"] = Param(f"{gates[0]}.weight")
    own_scale = next((float(module.__dict__[n]) for n in SCALE_NAMES if module.__dict__.get(n)), 1.0)
    for router_facts, router_state in _routers(module, routers[0], host):
        if any(router_facts[n] != facts[n] for n in ("hidden_size", "num_experts")):
            continue
        routing = {("router_bias" if k == "bias" else k): v for k, v in router_facts.items()}
        for scale in dict.fromkeys((own_scale, 1.0)):
            yield Proposal(
                task="shared_expert_moe",
                facts=facts | routing | {"routed_scaling": routing["routed_scaling"] * scale},
                state=state | {f"gate.{k}": source for k, source in router_state.items()},
                enter=_enter_block(tensor_of(module, router_state["weight"].names[0]), router_facts),
                scenarios=_block_scenarios(module, router_facts, router_state),
                evidence=evidence(type(module), KNOWN_BLOCKS),
                inner=tuple(n for n, c in module._modules.items() if c is not None),
                reads=tuple(n for n in SCALE_NAMES if n in module.__dict__),
                drops=jitters(module),
                on_live_weights=large(module),
            )


def _routers(module: nn.Module, name: str, host: Host) -> list[tuple[Mapping[str, Any], dict[str, Source]]]:
    """Facts and state of the router inside, its parameters by their names in the block.

    A router whose correction bias is the block's, passed at each call, is no site of its own: all its readings.
    """
    router = module._modules[name]
    site = host.site(router, "moe_router")
    if site is not None:
        return [(site.proposal.facts, {k: s.under(name) for k, s in site.proposal.state.items()})]
    outer = [n for n in CORRECTION_NAMES if (module._buffers | module._parameters).get(n) is not None]
    if not outer or router is None:
        return []
    found = readings(router, Param(outer[0]))
    own: dict[str, Source] = {"e_score_correction_bias": Param(outer[0])}
    return [(r.facts, {**{k: s.under(name) for k, s in r.state.items()}, **own}) for r in found]


def _enter_block(weight: torch.Tensor, facts: Mapping[str, Any]) -> Enter:
    float_logits = facts["float_logits"]

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        call = one_tensor(args, kwargs)
        if isinstance(call, str):
            return call
        if call[0].itemsize < weight.itemsize and not float_logits:
            return f"tokens in {call[0].dtype}, router weights in {weight.dtype}"
        return call

    return enter


def _block_scenarios(module: nn.Module, facts: Mapping[str, Any], state: Mapping[str, Source]) -> Scenarios:
    """Tokens whose experts no rounding changes, as two rows; and one token."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        tokens = stable_tokens(draw, module, facts, state)
        yield lambda forward: [forward(tokens.unflatten(0, (2, -1)).clone())]
        yield lambda forward: [forward(tokens[:1].unsqueeze(0).clone())]

    return scenarios
