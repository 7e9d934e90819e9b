"""Linear layers of SGLang, whole or one rank's part: ``(output, bias)``, with the engine's reductions around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.around import Call, finish_linear, unreduced
from fastkernels.patches.sglang.bypass import walked_around
from fastkernels.patches.sglang.running import (
    invariance,
    layer_class,
    packed_or_quantised,
    sequence_parallel,
    wrapped_by_lora,
)
from fastkernels.patches.site import Draws, Enter, Forward, Leave, Proposal, Scenario
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.attention import argument_reason

COLUMNS = ("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear")
KINDS = ("ReplicatedLinear", *COLUMNS, "RowParallelLinear")
READS = (
    "quant_method",
    "tp_size",
    "tp_rank",
    "skip_bias_add",
    "gather_output",
    "reduce_results",
    "input_is_parallel",
    "use_decode_attn_tp",
)


def linear(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Exact classes; what is quantised, packed, or wrapped by LoRA later is gated."""
    kind = layer_class(module)
    if kind not in KINDS:
        return
    gated = invariance(host) or packed_or_quantised(module) or wrapped_by_lora(module) or _unusual(module)
    gated = gated or walked_around(module, host)
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2:
        gated = gated or "its weight is no matrix"
        out_features, in_features = 0, 0
    else:
        out_features, in_features = weight.shape
    biased = has_bias(module)
    alone = tensor_parallel(module) == 1
    yield Proposal(
        task="linear",
        facts={"input_size": in_features, "output_size": out_features, "bias": biased},
        state={"weight": Param("weight")} | ({"bias": Param("bias")} if biased else {}),
        enter=enter_for(alone),
        leave=leave_for(module, alone),
        scenarios=scenarios(module, in_features),
        evidence="class",
        reads=tuple(n for n in READS if n in vars(module)),
        on_live_weights=True,
        gated=gated,
    )


def tensor_parallel(module: nn.Module) -> int:
    """Over how many ranks the layer's weight is split."""
    return int(vars(module).get("tp_size", 1))


def has_bias(module: nn.Module) -> bool:
    """Whether the layer's own product adds a bias: only the first rank's does, of those whose results are summed."""
    there = module._parameters.get("bias") is not None and not module.skip_bias_add
    return there and not (layer_class(module) == "RowParallelLinear" and vars(module)["tp_rank"] > 0)


def _unusual(module: nn.Module) -> str:
    own = vars(module)
    if own.get("use_decode_attn_tp"):
        return "use_decode_attn_tp is set"
    if own.get("input_is_parallel") is False and tensor_parallel(module) > 1:
        return "it splits its own input"
    return ""


def enter_for(alone: bool) -> Enter:
    """One tensor. The other arguments say how ranks are reduced; alone there is nothing to reduce."""

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        if len(args) == 1 and not kwargs:
            return args if alone else Call.of(args, args, kwargs)
        if not args or len(args) > 3 or kwargs.get("output_tensor") is not None:
            name = "output_tensor" if len(args) > 3 or "output_tensor" in kwargs else "input_"
            return argument_reason(name, kwargs.get(name))
        strange = next((n for n in kwargs if n not in ("skip_all_reduce", "forward_batch", "output_tensor")), None)
        if strange is not None:
            return argument_reason(strange, kwargs[strange])
        return args[:1] if alone else Call.of(args[:1], args, kwargs)

    if alone:
        return enter
    split = sequence_parallel()

    def enter_parallel(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        return "sequence parallelism: ranks hold parts of the sequence" if split() else enter(args, kwargs)

    return enter_parallel


def leave_for(module: nn.Module, alone: bool) -> Leave:
    """``(output, bias)``, with the bias where the layer leaves it to its caller."""
    if not alone:
        return lambda product, call: finish_linear(module, product, call)
    if not module.skip_bias_add:
        return lambda product, call: (product, None)
    return lambda product, call: (product, module._parameters["bias"])


def scenarios(module: nn.Module, width: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Several tokens and one; each rank by itself."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        for salt, (rows, scale) in enumerate([(7, 1.0), (1, 40.0)]):
            x = draw.normal(rows, width, scale=scale, salt=salt)

            def multiplied(forward: Forward, x: torch.Tensor = x) -> list[torch.Tensor]:
                with unreduced(module):
                    return [t for t in forward(x.clone()) if t is not None]

            yield multiplied

    return drawn
