"""SGLang's ``TopK``: the choice of experts from a router's logits, softmax over all and the best kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.running import invariance, layer_class, runs_on, setting
from fastkernels.patches.site import Draws, Forward, Leave, Proposal, Scenario
from fastkernels.patches.transformers.attention import argument_reason

ARGUMENTS = ("hidden_states", "router_logits")
OPTIONS = ("use_grouped_topk", "custom_routing_function", "correction_bias", "num_fused_shared_experts")
RECORDED = ("enable_return_routed_experts", "expert_distribution_recorder_mode")
STANDARD = "StandardTopKOutput"
EXPERTS = 128  # in probes; the module does not know how many there are
RANKS = 200  # apart by a quarter, which bfloat16 holds without rounding


def topk_softmax(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Where it scores by softmax, without groups or biases, and nobody records what it chooses."""
    if layer_class(module) != "TopK":
        return
    config = module.topk_config
    yield Proposal(
        task="topk_softmax",
        facts={"top_k": config.top_k, "renormalize": bool(config.renormalize)},
        state={},
        enter=enter,
        leave=leave_for(),
        scenarios=scenarios(config.top_k, runs_on(host)[0]),
        evidence="class",
        reads=("topk_config",),
        on_live_weights=True,
        runs_on=runs_on(host),
        gated=invariance(host) or unusual_routing(config),
    )


def unusual_routing(config: Any) -> str:
    """Why the engine's choice of experts is not softmax and the best; empty where it is."""
    strange = next((n for n in OPTIONS if getattr(config, n, None) not in (None, False, 0)), None)
    if strange is not None:
        return f"its router has {strange}"
    if getattr(config, "scoring_func", "softmax") != "softmax":
        return f"its router scores by {config.scoring_func}"
    if getattr(config, "routed_scaling_factor", None) not in (None, 1.0):
        return f"its router has routed_scaling_factor={config.routed_scaling_factor}"
    recorded = next((n for n in RECORDED if setting(n)), None)
    return f"{recorded}: the engine records what its own router chooses" if recorded is not None else ""


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """The logits. Padded tokens and experts that moved are the engine's business."""
    given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    strange = next((n for n, v in given.items() if v is not None and n not in ARGUMENTS), None)
    if strange is not None:
        return argument_reason(strange, given[strange])
    return (given["router_logits"],)


def leave_for() -> Leave:
    """Weights in float32 and ids in int32 in the engine's own tuple, with the logits."""

    def leave(result: Any, call: tuple[torch.Tensor, ...]) -> Any:
        from sglang.srt.layers.moe import topk

        weights, ids = result
        return getattr(topk, STANDARD)(weights.float(), ids.int(), call[0])

    return leave


def scenarios(top_k: int, device: torch.device) -> Callable[[Draws], Iterator[Scenario]]:
    """Logits that no rounding makes equal, several tokens and one; compared as a matrix of all experts' weights."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        for salt, count in enumerate([9, 1]):
            ranks = draw.normal(count, EXPERTS, salt=salt).float().argsort(dim=-1).argsort(dim=-1)
            logits = (ranks.clamp_max(RANKS) / -4).to(device, draw.dtype)
            hidden = torch.zeros(count, 64, device=device, dtype=draw.dtype)

            def dense(
                forward: Forward, hidden: torch.Tensor = hidden, logits: torch.Tensor = logits
            ) -> list[torch.Tensor]:
                chosen = forward(hidden, logits.clone())
                empty = torch.zeros(logits.shape, device=device)
                return [empty.scatter(-1, chosen.topk_ids.long(), chosen.topk_weights.float())]

            yield dense

    return drawn
