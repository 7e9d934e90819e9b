"""Sparse blocks of vLLM's models: router, experts and perhaps a shared expert, as one ``shared_expert_moe``.

With tensor parallelism a candidate computes the rank's share of every expert; the sum over ranks stays the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param, Source
from fastkernels.patches.transformers.moe_router import stable_tokens
from fastkernels.patches.vllm.collectives import all_reduce
from fastkernels.patches.vllm.engine import LORA, gated, is_a, placement
from fastkernels.patches.vllm.gated_mlp import PARTS, facts_of, state_of, why_mlp_closed
from fastkernels.patches.vllm.linear import kind_of, why_closed
from fastkernels.patches.vllm.moe import experts_facts, experts_state, why_experts_closed

RUNNER = "vllm.model_executor.layers.fused_moe.runner.moe_runner:MoERunner"
SHARED = ("shared_expert", "shared_experts")
TRANSFORMS = ("routed_input_transform", "routed_output_transform")


def moe_block(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules with a ``gate`` and ``experts`` that a ``MoERunner`` runs."""
    runner, gate = module._modules.get("experts"), module._modules.get("gate")
    if gate is None or not is_a(runner, RUNNER, LORA):
        return
    if is_a(runner, LORA) or is_a(gate, LORA):
        yield gated("shared_expert_moe", "LoRA: its experts are wrapped, and adapters are added inside the wrapper")
        return
    assert runner is not None
    reason = _why_closed(module, runner, gate, host)
    if reason:
        yield gated("shared_expert_moe", reason)
        return
    routed = runner.get_submodule("routed_experts")
    facts = experts_facts(routed) | _routing(runner, routed)
    state: dict[str, Source] = {"gate.weight": Param("gate.weight")}
    state |= {f"experts.{k}": s for k, s in experts_state(routed, "experts.routed_experts").items()}
    shared = _shared(module)
    if shared is not None:
        part = module.get_submodule(shared)
        facts["shared_intermediate_size"] = facts_of(part)["intermediate_size"]
        state |= {f"shared_expert.{k}": s for k, s in state_of(part, shared).items()}
    if module._modules.get("shared_expert_gate") is not None:
        facts["shared_gate"] = True
        state["shared_expert_gate.weight"] = Param("shared_expert_gate.weight")
    if facts.get("has_correction_bias"):
        name = _name_of(routed.e_score_correction_bias, module)
        if name is None:
            yield gated("shared_expert_moe", "its correction bias is not a parameter of the block")
            return
        state["gate.e_score_correction_bias"] = Param(name)
    config = routed.moe_config
    reduced = config.tp_size > 1 and not config.skip_final_all_reduce  # type: ignore[union-attr] # a FusedMoEConfig
    yield Proposal(
        task="shared_expert_moe",
        facts=facts,
        state=state,
        enter=enter,
        leave=(lambda out, call: all_reduce(out)) if reduced else None,
        scenarios=_scenarios(module, facts, {k: s for k, s in state.items() if k.startswith("gate.")}),
        evidence="class",
        inner=tuple(n for n, c in module._modules.items() if c is not None),
        parts={"experts": "experts.routed_experts"},
        on_live_weights=True,
        runs_on=placement(host),
        carrier=False,
    )


def _why_closed(module: nn.Module, runner: nn.Module, gate: nn.Module, host: Host) -> str:
    routed = runner.get_submodule("routed_experts")
    if type(runner).__name__ != "MoERunner":
        return f"{type(runner).__name__} runs its experts in a way of its own"
    reason = why_experts_closed(routed, host)
    if reason:
        return f"experts: {reason}"
    if kind_of(gate) != "replicated":
        return f"its router is a {type(gate).__name__}"
    reason = why_closed(gate, host)
    if reason:
        return f"gate: {reason}"
    if gate._parameters.get("bias") is not None:
        return "its router has a bias"
    if routed.custom_routing_function is not None or type(runner.router).__name__ == "ZeroExpertRouter":
        return "its routing is a function of the model's own"
    if any(getattr(runner, name, None) is not None for name in TRANSFORMS):
        return "its experts work on transformed tokens"
    shared = _shared(module)
    if (shared is None) != (getattr(runner, "_shared_experts", None) is None):
        return "its shared experts are not a part of the block"
    if _counts_layers():
        return "the engine tells its MoE layers apart by counting calls; compilation_config.fast_moe_cold_start=False"
    return "" if shared is None else _why_shared_closed(module, module.get_submodule(shared), routed, host)


def _why_shared_closed(module: nn.Module, shared: nn.Module, routed: nn.Module, host: Host) -> str:
    children = {n: c for n, c in shared._modules.items() if c is not None}
    gate = module._modules.get("shared_expert_gate")
    if set(children) - {"expert_gate"} != set(PARTS) or children.get("expert_gate") is not gate:
        return "its shared expert has other parts than an MLP and a gate"
    reason = why_mlp_closed(shared, host)
    if reason is None or reason:
        return f"shared expert: {reason or 'it is no gated MLP'}"
    if gate is not None and (kind_of(gate) != "replicated" or why_closed(gate, host)):
        return f"its shared expert's gate is a {type(gate).__name__}"
    if facts_of(shared)["bias"] or facts_of(shared)["hidden_act"] != experts_facts(routed)["hidden_act"]:
        return "its shared expert has biases or another activation"
    if routed.moe_config.tp_size > 1 and shared.get_submodule("down_proj").reduce_results:  # type: ignore[union-attr]
        return "its shared expert is summed over ranks by itself"
    return ""


def _counts_layers() -> bool:
    from vllm.config import get_current_vllm_config_or_none
    from vllm.utils import torch_utils

    config = get_current_vllm_config_or_none()
    by_name = getattr(torch_utils, "_USE_LAYERNAME", False)
    return not by_name and config is not None and bool(config.compilation_config.fast_moe_cold_start)


def _shared(module: nn.Module) -> str | None:
    return next((n for n in SHARED if module._modules.get(n) is not None), None)


def _name_of(tensor: Any, module: nn.Module) -> str | None:
    named = (*module.named_parameters(), *module.named_buffers())
    return next((name for name, value in named if value is tensor), None)


def _routing(runner: nn.Module, routed: nn.Module) -> dict[str, Any]:
    """How tokens find their experts; a factor on the routed output is one on the weights."""
    facts: dict[str, Any] = {
        "top_k": int(routed.top_k),  # type: ignore[arg-type] # a number on RoutedExperts
        "scoring": routed.scoring_func,
        "renormalize": bool(routed.renormalize),
        "routed_scaling": float(routed.routed_scaling_factor) * float(runner.routed_scaling_factor),  # type: ignore[arg-type]
    }
    if routed.use_grouped_topk and routed.num_expert_group and int(routed.num_expert_group) > 1:  # type: ignore[arg-type]
        facts |= {"num_groups": routed.num_expert_group, "topk_groups": routed.topk_group}
    if routed.e_score_correction_bias is not None:
        facts["has_correction_bias"] = True
    return facts


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """One tensor (tokens, width)."""
    call = one_tensor(args, kwargs)
    if isinstance(call, str) or call[0].dim() >= 2:
        return call
    return "one token without an axis of tokens"


def _scenarios(module: nn.Module, facts: Mapping[str, Any], state: Mapping[str, Source]) -> Any:
    """Tokens whose experts no rounding changes, and one of them alone."""
    experts_only = ("intermediate_size", "shared_intermediate_size", "shared_gate", "hidden_act")
    router = {k: v for k, v in facts.items() if k not in experts_only}
    sources = {k.removeprefix("gate."): s for k, s in state.items()}

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        tokens = stable_tokens(draw, module, router, sources)
        yield lambda forward: [forward(tokens.clone())]
        yield lambda forward: [forward(tokens[:1].clone())]

    return scenarios
