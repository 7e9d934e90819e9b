"""Experts of SGLang: ``FusedMoE``, tokens and the router's choice in, the weighted sum of one rank's experts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.running import invariance, layer_class, packed_or_quantised, setting, wrapped_by_lora
from fastkernels.patches.site import Draws, Forward, Proposal, Scenario
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.attention import argument_reason

ARGUMENTS = ("hidden_states", "topk_output", "pre_quant_input")
ACTIVATIONS = {"silu": ("silu",), "gelu": ("gelu", "gelu_tanh")}  # which GELU it is depends on the runner
OPTIONS = ("apply_router_weight_on_input", "no_combine", "gemm1_alpha", "gemm1_clamp_limit", "swiglu_limit")
STANDARD = "StandardTopKOutput"


def fused_experts(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """The class that does without a library of expert parallelism; weights as the checkpoint has them."""
    if layer_class(module) != "FusedMoE":
        return
    w13, w2 = module._parameters.get("w13_weight"), module._parameters.get("w2_weight")
    gated = invariance(host) or packed_or_quantised(module) or wrapped_by_lora(module) or _unusual(module)
    if w13 is None or w2 is None or w13.dim() != 3 or w2.dim() != 3 or w13.shape[1:] != (2 * w2.shape[2], w2.shape[1]):
        gated = gated or "its weights are laid out for another kernel"
    experts, hidden, inner = w2.shape if w2 is not None and w2.dim() == 3 else (0, 0, 0)
    top_k = module.top_k or 1
    for kind in ACTIVATIONS.get(module.moe_runner_config.activation, ("silu",)):
        yield Proposal(
            task="fused_experts",
            facts={
                "num_experts": experts,
                "hidden_size": hidden,
                "intermediate_size": inner,
                "hidden_act": kind,
            },
            state={"w13_weight": Param("w13_weight"), "w2_weight": Param("w2_weight")},
            enter=enter,
            scenarios=scenarios(experts, hidden, top_k),
            evidence="class",
            inner=tuple(n for n in ("quant_method",) if n in module._modules),
            reads=tuple(n for n in ("quant_method", "dispatcher", "reduce_results") if n in vars(module)),
            on_live_weights=True,
            carrier=False,
            gated=gated,
        )


def _unusual(module: nn.Module) -> str:
    own, config = vars(module), module.moe_runner_config
    if own["moe_ep_size"] > 1:
        return "its experts are split over ranks"
    if type(own["dispatcher"]).__name__ != "StandardDispatcher":
        return f"tokens go to other ranks and come back ({type(own['dispatcher']).__name__})"
    if own["reduce_results"] and own["moe_tp_size"] > 1:
        return "it reduces over ranks itself"
    if setting("enable_two_batch_overlap"):
        return "two-batch overlap: the engine calls its run_moe_core instead"
    if any(n.endswith("_bias") for n in module._parameters):
        return "its experts have biases"
    if getattr(config, "num_fused_shared_experts", 0):
        return "shared experts are fused into it"
    if config.activation not in ACTIVATIONS or not getattr(config, "is_gated", True):
        return f"its activation is {config.activation}"
    if config.routed_scaling_factor not in (None, 1.0):
        return f"routed_scaling_factor={config.routed_scaling_factor}"
    strange = next((n for n in OPTIONS if getattr(config, n, None)), None)
    return f"{strange}={getattr(config, strange)}" if strange is not None else ""


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """Tokens, weights and ids out of ``(hidden_states, topk_output)``; the task takes ids of 64 bits."""
    given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    strange = next((n for n, v in given.items() if v is not None and n not in ARGUMENTS[:2]), None)
    if strange is not None:
        return argument_reason(strange, given[strange])
    x, choice = given["hidden_states"], given["topk_output"]
    if type(choice).__name__ != STANDARD:
        return f"the router's choice is a {type(choice).__name__}"
    if x.dim() != 2 or not x.shape[0]:
        return "no tokens" if x.dim() == 2 else f"tokens of {x.dim()} dimensions"
    return x, choice.topk_weights, choice.topk_ids.long()


def scenarios(experts: int, hidden: int, top_k: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Usual and large tokens, one token; each with its experts in a row from a random first."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        from sglang.srt.layers.moe import topk

        standard = getattr(topk, STANDARD)
        for salt, (count, scale) in enumerate([(12, 1.0), (5, 8.0), (1, 1.0)]):
            x = draw.normal(count, hidden, scale=scale, salt=salt)
            first = draw.integers(count, 1, high=experts, salt=10 + salt)
            ids = ((first + torch.arange(top_k, device=first.device)) % experts).int()
            weights = draw.normal(count, top_k, salt=20 + salt).abs().float()
            scores = torch.zeros(count, experts, device=x.device, dtype=x.dtype)

            def mixed(
                forward: Forward,
                x: torch.Tensor = x,
                choice: tuple[torch.Tensor, ...] = (weights, ids, scores),
            ) -> list[torch.Tensor]:
                return [forward(x.clone(), standard(*(t.clone() for t in choice)))]

            yield mixed

    return drawn
