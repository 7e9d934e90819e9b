"""vLLM's linear layers, one rank's share of each: what crosses ranks stays the engine's own collective.

Only plain weights: what a quantisation method or a LoRA wrapper computes with is not the matrix of task ``linear``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Leave, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param, Source
from fastkernels.patches.vllm.collectives import all_gather, all_reduce, own_share
from fastkernels.patches.vllm.engine import closed, gated, is_a, placement, runs_forward_of, tensors
from fastkernels.patches.vllm.norms import VALUES

FILE = "vllm.model_executor.layers.linear:"
KINDS = {"replicated": "ReplicatedLinear", "column": "ColumnParallelLinear", "row": "RowParallelLinear"}
PLAIN_METHOD = "UnquantizedLinearMethod"


def kind_of(module: nn.Module | None) -> str | None:
    """``replicated``, ``column`` (also merged and QKV) or ``row``; None for another module."""
    return next((kind for kind, cls in KINDS.items() if is_a(module, FILE + cls)), None)


def linear(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Layers of the three kinds whose weight is a plain matrix."""
    kind = kind_of(module)
    if kind is None:
        return
    reason = why_closed(module, host)
    if reason:
        yield gated("linear", reason)
        return
    output_size, input_size = module._parameters["weight"].shape  # type: ignore[union-attr] # there: nothing is closed
    bias = bias_added(module, kind)
    state: dict[str, Source] = {"weight": Param("weight")}
    if bias:
        state["bias"] = Param("bias")
    split = kind == "row" and not module.input_is_parallel and ranks_of(module) > 1
    yield Proposal(
        task="linear",
        facts={"input_size": input_size, "output_size": output_size, "bias": bias},
        state=state,
        enter=_enter_split(module) if split else one_tensor,
        leave=_leave(module, kind),
        scenarios=rows(input_size * (ranks_of(module) if split else 1)),
        evidence="class",
        reads=("skip_bias_add",),
        on_live_weights=True,
        runs_on=placement(host),
    )


def why_closed(module: nn.Module, host: Host) -> str:
    """Why this layer may not be computed by anything else, or an empty string."""
    kind = kind_of(module)
    assert kind is not None
    reason = closed(module, host)
    if reason:
        return reason
    method = type(module.quant_method).__name__
    if method != PLAIN_METHOD:
        return f"quant method {method}: its weights are not the plain matrix of the task"
    if not runs_forward_of(module, FILE + KINDS[kind]):
        return f"{type(module).__name__} has a forward of its own, which the task does not say"
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2:
        return "the engine packed its weight and removed the matrix; cpu_weights.keep_weights() before loading keeps it"
    return ""


def ranks_of(module: nn.Module) -> int:
    """Over how many ranks the layer is spread."""
    ranks: int = module.tp_size  # type: ignore[assignment] # an int on every LinearBase
    return ranks


def bias_added(module: nn.Module, kind: str) -> bool:
    """Whether this rank's product has the bias added: one rank alone adds that of a row-parallel layer."""
    if module._parameters.get("bias") is None or module.skip_bias_add:
        return False
    return kind != "row" or bool(module.tp_rank == 0)


def _enter_split(module: nn.Module) -> Enter:
    rank, ranks = int(module.tp_rank), ranks_of(module)  # type: ignore[arg-type] # an int on every LinearBase

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        call = one_tensor(args, kwargs)
        return call if isinstance(call, str) else (own_share(call[0], rank=rank, ranks=ranks),)

    return enter


def _leave(module: nn.Module, kind: str) -> Leave | None:
    """The collective that the layer ends with, and the bias that it hands on beside its output."""
    collective: Callable[[torch.Tensor], torch.Tensor] | None = None
    if ranks_of(module) > 1 and kind == "row" and module.reduce_results:
        collective = all_reduce
    elif ranks_of(module) > 1 and kind == "column" and module.gather_output:
        collective = all_gather
    parameters, skips = module._parameters, bool(module.skip_bias_add)

    def with_bias(out: Any, call: Any) -> Any:
        out = out if collective is None else collective(out)
        return out, parameters["bias"] if skips else None

    if module.return_bias:
        return with_bias
    return None if collective is None else lambda out, call: collective(out)


def rows(width: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Tokens (rows, width) of usual, large and small values."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, (count, scale) in enumerate(VALUES):
            x = draw.normal(count, width, scale=scale, salt=salt)
            yield lambda forward, x=x: tensors(forward(x.clone()))  # type: ignore[misc] # a default binds x early

    return scenarios
