"""Gated MLPs of SGLang: gate and up as one linear, an activation, a row-parallel linear; whole or one rank's part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.around import Call, finish_mlp, unreduced
from fastkernels.patches.sglang.bypass import walked_around
from fastkernels.patches.sglang.linear import tensor_parallel
from fastkernels.patches.sglang.running import layer_class, sequence_parallel
from fastkernels.patches.site import Draws, Enter, Forward, Proposal, Scenario, Site
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.attention import argument_reason

# Of the forwards of its classes: none says anything to an MLP that no rank shares.
ABOUT_RANKS = frozenset({"forward_batch", "use_reduce_scatter", "should_allreduce_fusion"})


def gated_mlp(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Models' own classes with exactly ``gate_up_proj``, ``act_fn`` and ``down_proj`` inside."""
    children = module._modules
    if set(children) != {"gate_up_proj", "act_fn", "down_proj"} or module._parameters or module._buffers:
        return
    sites = [host.site(children[n], "linear") for n in ("gate_up_proj", "down_proj")]
    act = host.site(children["act_fn"], "silu_and_mul", "gelu_and_mul")
    up, down = sites
    if up is None or down is None or act is None or layer_class(children["down_proj"]) != "RowParallelLinear":
        return
    if up.proposal.facts["bias"] != down.proposal.facts["bias"]:
        return
    inner = down.proposal.facts["input_size"]
    if up.proposal.facts["output_size"] != 2 * inner:
        return
    last = children["down_proj"]
    assert last is not None
    alone = tensor_parallel(last) == 1
    names = ("weight", "bias") if up.proposal.facts["bias"] else ("weight",)
    yield Proposal(
        task="gated_mlp",
        facts={
            "hidden_size": up.proposal.facts["input_size"],
            "intermediate_size": inner,
            "hidden_act": activation(act),
            "bias": up.proposal.facts["bias"],
        },
        state={f"{child}.{n}": Param(f"{child}.{n}") for child in ("gate_up_proj", "down_proj") for n in names},
        enter=enter_for(alone),
        leave=None if alone else lambda product, call: finish_mlp(module, "down_proj", product, call),
        scenarios=scenarios(last, up.proposal.facts["input_size"]),
        evidence="schema",
        inner=("gate_up_proj", "act_fn", "down_proj"),
        parts={n: n for n in children},
        on_live_weights=True,
        gated=next((reason for s in (up, down, act) if (reason := _unfit(s, host))), ""),
    )


def _unfit(site: Site, host: Host) -> str:
    """Why a part keeps the whole from being replaced. That the engine walks around it is none: it is inside."""
    gated = site.proposal.gated
    return "" if gated == walked_around(site.module, host) else gated


def activation(site: Site) -> str:
    """The name that the tasks give the activation of a site of ``silu_and_mul`` or ``gelu_and_mul``."""
    if site.proposal.task == "silu_and_mul":
        return "silu"
    return "gelu" if site.proposal.facts["approximate"] == "none" else "gelu_tanh"


def enter_for(alone: bool) -> Enter:
    """One tensor. Alone, what concerns ranks says nothing; else the engine's own code gets it afterwards."""
    split = sequence_parallel() if not alone else None

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        if split is not None and split():
            return "sequence parallelism: ranks hold parts of the sequence"
        if not args:
            return "called without positional arguments"
        if len(args) > 1 or kwargs:
            strange = next((n for n, v in kwargs.items() if n not in ABOUT_RANKS and v is not None), None)
            if strange is not None:
                return argument_reason(strange, kwargs[strange])
        return args[:1] if alone else Call.of(args[:1], args, kwargs)

    return enter


def scenarios(down: nn.Module, width: int) -> Callable[[Draws], Iterator[Scenario]]:
    """Several tokens and one; each rank by itself."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        for salt, (rows, scale) in enumerate([(7, 1.0), (1, 8.0)]):
            x = draw.normal(rows, width, scale=scale, salt=salt)

            def computed(forward: Forward, x: torch.Tensor = x) -> list[torch.Tensor]:
                with unreduced(down):
                    return [forward(x.clone())]

            yield computed

    return drawn
