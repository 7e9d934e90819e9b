"""How the engine of this process runs, as far as it decides which of its modules are called, and with what."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.source import device_of

CONTEXT = "sglang.srt.runtime_context"
PLAIN_METHODS = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "UnquantizedFusedMoEMethod")


def layer_class(module: nn.Module | None) -> str:
    """The name of a class of ``sglang.srt.layers``; empty for any other, a LoRA wrapper or a subclass elsewhere.

    Between versions those classes move among files and change their base, and keep their names.
    """
    cls = type(module)
    return cls.__name__ if cls.__module__.startswith("sglang.srt.layers.") else ""


def runtime_context() -> Any:
    """The module in which SGLang publishes how a process runs; None where there is none (0.5.13), and the server
    arguments say it all."""
    try:
        return importlib.import_module(CONTEXT)
    except ModuleNotFoundError as error:
        if error.name != CONTEXT:
            raise
        return None


def setting(name: str) -> Any:
    """A server argument of this process, or None where there is none, or no engine runs here (a layer by itself)."""
    context = runtime_context()
    if context is None:
        from sglang.srt.server_args import get_global_server_args as published
    else:
        published = context.get_server_args
    return _read(published, name)


def execution(group: str, name: str) -> Any:
    """One of the engine's resolved settings on how it executes; None where there is none, or nothing is published."""
    context = runtime_context()
    return setting(name) if context is None else _read(lambda: getattr(context.get_exec(), group), name)


def resolved(group: str, name: str) -> Any:
    """A resolved setting of a group of the engine's (``model``, ``schedule``); until 0.5.13, and where the group does
    not have it, the server argument of that name."""
    group_of = getattr(runtime_context(), f"get_{group}", None)
    found = None if group_of is None else _read(group_of, name)
    return setting(name) if found is None else found


def _read(published: Callable[[], Any], name: str) -> Any:
    try:
        return getattr(published(), name, None)
    except (ValueError, AttributeError, RuntimeError, AssertionError):  # nothing is published
        return None


def sequence_parallel() -> Callable[[], bool]:
    """Tells of each step whether its activations are split along the sequence; since 0.5.20 they may be."""
    context = runtime_context()
    if context is None:
        return lambda: False
    return lambda: bool(getattr(context.get_forward(), "sp_active", False))


def on_cuda() -> bool:
    """Whether the engine takes its CUDA paths."""
    from sglang.srt.utils import is_cuda

    return bool(is_cuda())


def runs_on(host: Host) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the model, for modules without a tensor of their own."""
    key = "sglang runs on"
    if key not in host.memo:
        floating = (p.dtype for p in host.model.parameters() if p.is_floating_point())
        host.memo[key] = (device_of(host.model), next(floating, torch.float32))
    found: tuple[torch.device, torch.dtype] = host.memo[key]
    return found


def unquantised(module: nn.Module) -> bool:
    """The module's quantisation method, an attribute or (of experts) a child, is the one that does nothing."""
    return type(getattr(module, "quant_method", None)).__name__ in PLAIN_METHODS


def invariance(host: Host) -> str:
    """Why no candidate may stand anywhere: the operator asked for outputs that do not depend on the batch, or that are
    those of training, bit by bit; empty where not."""
    key = "sglang invariance"
    if key not in host.memo:
        host.memo[key] = _invariance()
    reason: str = host.memo[key]
    return reason


def _invariance() -> str:
    from sglang.srt.batch_invariant_ops import is_batch_invariant_mode_enabled

    if is_batch_invariant_mode_enabled() or setting("enable_deterministic_inference"):
        return "batch-invariant mode: the operator asked for outputs that do not depend on the batch"
    if setting("rl_on_policy_target") is not None:
        return "rl_on_policy_target: the operator asked for the numbers of training"
    return ""


def packed_or_quantised(module: nn.Module) -> str:
    """Why the module's weights are not the task's: quantised, or packed for a CPU's matrix unit; empty where they
    are."""
    if not unquantised(module):
        return f"its weights are quantised ({type(getattr(module, 'quant_method', None)).__name__})"
    if vars(module).get("use_intel_amx_backend"):
        return "its weights are packed for AMX"
    return ""


def wrapped_by_lora(module: nn.Module) -> str:
    """Why a module that LoRA will wrap is never called; empty without LoRA. Wrappers come after the patch."""
    if setting("enable_lora") or setting("lora_paths"):
        return "LoRA is on: the engine's wrapper multiplies by the weight itself and does not call this module"
    return ""
