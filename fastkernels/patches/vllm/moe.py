"""vLLM's mixtures of experts: the routed experts of a layer, and the sparse block with its router around them.

The experts' seam is ``RoutedExperts.forward_modular``, which runs inside the engine's opaque operator as well; the
block's is its own forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario
from fastkernels.patches.source import Param, Source
from fastkernels.patches.vllm.cpu_weights import KEPT
from fastkernels.patches.vllm.engine import closed, gated, is_a, placement
from fastkernels.patches.vllm.owners import owners

EXPERTS = "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts"
PLAIN_METHOD = "UnquantizedFusedMoEMethod"
PLAIN_LAYOUTS = ("TRITON", "BATCHED_TRITON")  # backends that leave the weights as they were loaded
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_tanh"}
NAMES = ("x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input")


def fused_experts(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``RoutedExperts`` with plain weights: the rank's share, before any sum over ranks."""
    if not is_a(module, EXPERTS):
        return
    reason = why_experts_closed(module, host)
    if not reason and any(getattr(o, "_shared_experts", None) is not None for o, _ in owners(module, host)):
        reason = "its shared experts may run inside the same kernel"
    if reason:
        yield gated("fused_experts", reason)
        return
    facts = experts_facts(module)
    yield Proposal(
        task="fused_experts",
        facts=facts,
        state=experts_state(module),
        enter=enter,
        scenarios=_scenarios(module, facts["num_experts"], facts["hidden_size"]),
        evidence="class",
        on_live_weights=True,
        runs_on=placement(host),
        carrier=False,
        method="forward_modular",
    )


def why_experts_closed(module: nn.Module, host: Host) -> str:
    """Why these experts may not be computed by anything else, or an empty string."""
    method, config = module.quant_method, module.moe_config
    if type(method).__name__ != PLAIN_METHOD:
        return f"quant method {type(method).__name__}: its weights are not the plain matrices of the task"
    reason = closed(module, host) or _unsaid(module, config)
    if reason:
        return reason
    if method.is_monolithic:  # type: ignore[union-attr] # a quant method
        return "its kernel routes the tokens itself"
    backend = method.unquantized_backend.name  # type: ignore[union-attr] # an enum on this method
    if backend not in PLAIN_LAYOUTS and KEPT + "w13_weight" not in module._buffers:
        return (
            f"the {backend} backend lays its weights out anew; moe_backend='triton' keeps them, and on a CPU "
            "cpu_weights.keep_weights() before loading"
        )
    w13, w2 = (_tensor(module, source) for source in experts_state(module).values())
    if w13.dim() != 3 or w13.shape[1] != 2 * w2.shape[2]:
        return "its weights are padded"
    return ""


def _unsaid(module: nn.Module, config: Any) -> str:
    """What its configuration asks for that the task does not say."""
    parallel = config.moe_parallel_config
    spread = {"expert": parallel.use_ep, "data": parallel.dp_size > 1, "context": parallel.pcp_size > 1}
    spread["sequence"] = config.is_sequence_parallel
    kinds = [kind for kind, on in spread.items() if on]
    if kinds:
        return f"{' and '.join(kinds)} parallelism: a rank's experts see other tokens than its block"
    if config.has_bias:
        return "its experts have biases"
    if module.apply_router_weight_on_input:
        return "the router's weights multiply the input"
    if any(getattr(config, name, None) is not None for name in ("swiglu_limit", "swiglu_alpha", "swiglu_beta")):
        return "its activation is clamped or scaled"
    if config.activation.value not in ACTIVATIONS:
        return f"activation {config.activation.value}"
    if config.num_experts != config.num_local_experts or config.num_experts != config.num_logical_experts:
        return "it holds redundant experts, or some of them only"
    return ""


def experts_state(module: nn.Module, under: str = "") -> dict[str, Source]:
    """Where the plain matrices lie: the parameters, or what was kept of them on a CPU."""
    names = {name: KEPT + name if KEPT + name in module._buffers else name for name in ("w13_weight", "w2_weight")}
    return {name: Param(f"{under}.{own}" if under else own) for name, own in names.items()}


def experts_facts(module: nn.Module) -> dict[str, Any]:
    """Constructor facts of one rank's share."""
    experts, hidden, inner = _tensor(module, experts_state(module)["w2_weight"]).shape
    act = ACTIVATIONS[module.moe_config.activation.value]  # type: ignore[union-attr] # a FusedMoEConfig
    return {"num_experts": experts, "hidden_size": hidden, "intermediate_size": inner, "hidden_act": act}


def _tensor(module: nn.Module, source: Source) -> torch.Tensor:
    name = source.names[0]
    return module._parameters[name] if name in module._parameters else module._buffers[name]  # type: ignore[return-value]


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """``(x, topk_weights, topk_ids)``; the engine keeps ids in int32."""
    given = dict(zip(NAMES, args, strict=False)) | kwargs
    if given.get("shared_experts") is not None:
        return "shared experts run inside the engine's kernel"
    ids = given["topk_ids"]
    return given["x"], given["topk_weights"], ids if ids.dtype is torch.int64 else ids.long()


def _scenarios(module: nn.Module, experts: int, hidden: int) -> Any:
    top_k = int(module.top_k)  # type: ignore[arg-type] # an int on RoutedExperts

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, (count, scale) in enumerate([(12, 1.0), (5, 8.0), (1, 1.0)]):
            x = draw.normal(count, hidden, scale=scale, salt=salt)
            first = draw.integers(count, 1, high=experts, salt=10 + salt)
            ids = ((first + torch.arange(top_k, device=first.device)) % experts).int()
            weights = draw.normal(count, top_k, salt=20 + salt).abs().float()

            def call(forward: Any, x: Any = x, ids: Any = ids, weights: Any = weights) -> list[torch.Tensor]:
                return [forward(x=x.clone(), topk_weights=weights.clone(), topk_ids=ids.clone())]

            yield call

    return scenarios
