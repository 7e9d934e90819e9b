"""vLLM's norms: ``RMSNorm`` and ``GemmaRMSNorm`` with the residual add before them, and layer norms.

In the engine the fused form may write to its arguments; callers go on with what it returns, so new tensors do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario
from fastkernels.patches.source import Param, Source
from fastkernels.patches.transformers.norms import layer_norm as any_layer_norm
from fastkernels.patches.vllm.engine import closed, gated, is_a, placement, tensors
from fastkernels.patches.vllm.owners import passed_over

RMS_NORM = "vllm.model_executor.layers.layernorm:RMSNorm"
GEMMA = "vllm.model_executor.layers.layernorm:GemmaRMSNorm"
VALUES = ((7, 1.0), (3, 40.0), (1, 1e-3))  # rows, and the size of their values


def rms_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Both classes and what inherits from them; what a subclass changes the probe shows."""
    gemma = is_a(module, GEMMA)
    if not gemma and not is_a(module, RMS_NORM):
        return
    task = "gemma_rms_norm" if gemma else "rms_norm"
    where = placement(host)
    weight = module._parameters.get("weight")
    reason = closed(module, host) or passed_over(module, host) or _unsaid(module)
    if reason:
        yield gated(task, reason)
        return
    width = module.hidden_size if weight is None else weight.shape[0]
    facts: dict[str, Any] = {"hidden_size": width, "eps": module.variance_epsilon}
    state: dict[str, Source] = {}
    if weight is not None:
        state["weight"] = Param("weight")
    if not gemma and weight is None:
        facts["has_weight"] = False
    if not gemma and weight is not None and weight.dtype != where[1]:
        facts["late_cast"] = True  # the product is then taken in the weight's dtype, and rounded once
    yield Proposal(
        task=task,
        facts=facts,
        state=state,
        enter=enter,
        scenarios=with_residual(int(width)),  # type: ignore[arg-type] # an int on vLLM's norms
        evidence="class",
        reads=("variance_epsilon",),
        on_live_weights=True,
        runs_on=where,
    )


def _unsaid(module: nn.Module) -> str:
    """What the module does that its task does not say."""
    size = module.__dict__.get("variance_size_override")
    if size is not None:
        return f"its mean square is of the first {size} values only"
    if module._parameters.get("weight") is not None and not module.__dict__.get("pass_weight", True):
        return "it has a weight and does not use it"
    return ""


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """``(x)`` or ``(x, residual)``, by position or name."""
    if kwargs:
        args = (*args, *(kwargs[n] for n in ("x", "residual")[len(args) :] if n in kwargs))
    if len(args) == 1:
        return args
    if len(args) != 2 or (kwargs and not kwargs.keys() <= {"x", "residual"}):
        return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
    return args if args[1] is not None else args[:1]


def with_residual(width: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Rows of usual, large and small values, heads of a token, and the same with a residual."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, (rows, scale) in enumerate(VALUES):
            x = draw.normal(rows, width, scale=scale, salt=salt)
            residual = draw.normal(rows, width, scale=scale, salt=10 + salt)
            yield lambda forward, x=x: [forward(x.clone())]  # type: ignore[misc] # a default binds x early
            yield lambda forward, x=x, r=residual: tensors(forward(x.clone(), r.clone()))  # type: ignore[misc]
        # Query heads as attention passes them to a norm of its own: a view of a wider row.
        wide = draw.normal(5, 3 * width, salt=20)
        yield lambda forward: [forward(wide.clone()[:, : 2 * width].unflatten(-1, (2, width)))]

    return scenarios


def layer_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``nn.LayerNorm`` and vLLM's own, on their live weights."""
    for proposal in any_layer_norm(module, host):
        reason = closed(module, host)
        yield gated("layer_norm", reason) if reason else replace(proposal, on_live_weights=True)
