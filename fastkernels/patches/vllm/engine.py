"""What adapters ask of the engine around a module: its classes, where the model runs, and why a site is closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import known_class
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario

LORA = "vllm.lora.layers.base:BaseLayerWithLoRA"
MODEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # float8 and integers are somebody's quantised weights


def is_a(module: nn.Module | None, *names: str) -> bool:
    """Whether ``module`` is an instance of one of the classes ``module:Class`` that this version of vLLM has."""
    return isinstance(module, tuple(c for c in map(known_class, names) if c is not None))


def runs_forward_of(module: nn.Module, name: str) -> bool:
    """Whether ``module``'s class is, or inherits ``forward`` unchanged from, the class ``module:Class``."""
    cls = known_class(name)
    return cls is not None and isinstance(module, cls) and type(module).forward is cls.forward


def placement(host: Host) -> tuple[torch.device, torch.dtype]:
    """Device and dtype that the model runs in: of its first weight that is not quantised."""
    if "placement" not in host.memo:
        weights = (p for p in host.model.parameters() if p.dtype in MODEL_DTYPES and p.numel())
        first = next(weights, torch.empty(0))
        host.memo["placement"] = (first.device, first.dtype)
    where: tuple[torch.device, torch.dtype] = host.memo["placement"]
    return where


def closed(module: nn.Module, host: Host) -> str:
    """Why nothing may stand at ``module`` whatever it computes, or an empty string."""
    if batch_invariant():
        return "VLLM_BATCH_INVARIANT is set, and a candidate may round a row by the batch that it is in"
    if "lora" not in host.memo:
        wrappers = [part for part in host.model.modules() if is_a(part, LORA)]
        wrapped = {id(part) for wrapper in wrappers for part in wrapper.modules() if part is not wrapper}
        host.memo["lora"] = (bool(wrappers), wrapped)
    wrappers_there, inside = host.memo["lora"]
    if id(module) in inside:
        return "LoRA: its wrapper calls the weights themselves, never this forward"
    if not wrappers_there and wants_lora() and wrapped_by_lora(module):
        return "LoRA is on: the engine is about to wrap this layer, and its wrapper never calls this forward"
    return ""


def wrapped_by_lora(module: nn.Module) -> bool:
    """Whether it is of the kinds that vLLM's LoRA manager wraps, or holds one of them."""
    kinds = (
        "vllm.model_executor.layers.linear:LinearBase",
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding",
        "vllm.model_executor.layers.fused_moe.runner.moe_runner:MoERunner",
        "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts",
        "vllm.model_executor.layers.logits_processor:LogitsProcessor",
    )
    return any(is_a(part, *kinds) for part in module.modules())


def wants_lora() -> bool:
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    return config is not None and config.lora_config is not None


def batch_invariant() -> bool:
    from vllm import envs

    return bool(getattr(envs, "VLLM_BATCH_INVARIANT", False))


def gated(task: str, reason: str) -> Proposal:
    """A module that is recognised as ``task`` and stays as it is, for ``reason``."""
    return Proposal(task=task, facts={}, state={}, enter=_stay, scenarios=_none, evidence="class", gated=reason)


def _stay(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return "gated"


def _none(draw: Draws) -> Iterator[Scenario]:
    yield from ()


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, and one that says which places of it hold none: what a scenario compares."""
    if isinstance(result, torch.Tensor):
        return [result]
    there = [isinstance(part, torch.Tensor) for part in result]
    return [part for part in result if isinstance(part, torch.Tensor)] + [torch.tensor(there, dtype=torch.float32)]
