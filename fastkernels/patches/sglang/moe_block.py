"""Sparse blocks of SGLang: a linear of logits, ``TopK``, and ``FusedMoE``, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.gated_mlp import enter_for
from fastkernels.patches.sglang.linear import tensor_parallel
from fastkernels.patches.sglang.router import unusual_routing
from fastkernels.patches.sglang.running import layer_class
from fastkernels.patches.site import Draws, Proposal, Scenario
from fastkernels.patches.source import Param, Source
from fastkernels.patches.transformers.moe_router import stable_tokens


def moe_block(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Models' own classes with exactly ``gate``, ``topk`` and ``experts`` inside, in any order."""
    children = module._modules
    if set(children) != {"gate", "topk", "experts"} or module._parameters or layer_class(children["topk"]) != "TopK":
        return
    gate, experts = host.site(children["gate"], "linear"), host.site(children["experts"], "fused_experts")
    if gate is None or experts is None or gate.proposal.facts["bias"]:
        return
    config = children["topk"].topk_config  # type: ignore[union-attr] # a TopK
    routing = {
        "hidden_size": gate.proposal.facts["input_size"],
        "num_experts": gate.proposal.facts["output_size"],
        "top_k": config.top_k,
        "renormalize": bool(config.renormalize),
    }
    state: dict[str, Source] = {"gate.weight": Param("gate.weight")}
    state |= {f"experts.{k}": source.under("experts") for k, source in experts.proposal.state.items()}
    yield Proposal(
        task="shared_expert_moe",
        facts=routing | {n: experts.proposal.facts[n] for n in ("intermediate_size", "hidden_act")},
        state=state,
        enter=enter_for(alone=True),
        scenarios=scenarios(module, routing),
        evidence="schema",
        inner=("gate", "topk", "experts"),
        parts={"gate.topk_softmax": "topk", "experts": "experts"},
        on_live_weights=True,
        carrier=False,
        gated=gate.proposal.gated or experts.proposal.gated or _unusual(children["experts"], config),
    )


def _unusual(experts: nn.Module | None, config: Any) -> str:
    assert experts is not None
    if vars(experts)["moe_tp_size"] > 1 or tensor_parallel(experts) > 1:
        return "its results are reduced over ranks; the experts inside it are a site"
    return unusual_routing(config)


def scenarios(module: nn.Module, routing: Mapping[str, Any]) -> Callable[[Draws], Iterator[Scenario]]:
    """Tokens whose experts no rounding changes, together and one alone."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        tokens = stable_tokens(draw, module, routing, {"weight": Param("gate.weight")})
        yield lambda forward: [forward(tokens.clone())]
        yield lambda forward: [forward(tokens[:1].clone())]

    return drawn
