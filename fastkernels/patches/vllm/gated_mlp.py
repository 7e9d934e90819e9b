"""Gated MLPs of vLLM, whatever the model calls them: a merged gate and up, an activation, a down projection.

With tensor parallelism a candidate computes the rank's share; the sum over ranks stays the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, one_tensor
from fastkernels.patches.source import Param, Source
from fastkernels.patches.vllm.activation import gate_kind
from fastkernels.patches.vllm.collectives import all_reduce
from fastkernels.patches.vllm.engine import LORA, gated, is_a, placement
from fastkernels.patches.vllm.linear import kind_of, ranks_of, rows, why_closed
from fastkernels.patches.vllm.owners import passed_over

PARTS = ("gate_up_proj", "down_proj", "act_fn")


def gated_mlp(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules that have exactly the three parts."""
    children = {name: child for name, child in module._modules.items() if child is not None}
    if set(children) != set(PARTS) or module._parameters or module._buffers:
        return
    if any(is_a(child, LORA) for child in children.values()):
        yield gated("gated_mlp", "LoRA: its projections are wrapped, and adapters are added inside the wrappers")
        return
    reason = why_mlp_closed(module, host)
    if reason is None:
        return
    if reason:
        yield gated("gated_mlp", reason)
        return
    down = children["down_proj"]
    reduced = ranks_of(down) > 1 and bool(down.reduce_results)
    yield Proposal(
        task="gated_mlp",
        facts=facts_of(module),
        state=state_of(module),
        enter=one_tensor,
        leave=(lambda out, call: all_reduce(out)) if reduced else None,
        scenarios=rows(int(facts_of(module)["hidden_size"])),
        evidence="class",
        inner=PARTS,
        on_live_weights=True,
        runs_on=placement(host),
    )


def why_mlp_closed(module: nn.Module, host: Host) -> str | None:
    """Why the three parts may not be computed as one, an empty string where they may; None where they are no MLP."""
    up, down, act = (module._modules[name] for name in PARTS)
    if kind_of(up) not in ("column", "replicated") or kind_of(down) not in ("row", "replicated") or act is None:
        return None
    for name, part in (("gate_up_proj", up), ("down_proj", down)):
        reason = why_closed(part, host)  # type: ignore[arg-type] # of a kind, so not None
        if reason:
            return f"{name}: {reason}"
    if gate_kind(act) is None:
        return None if not type(act).__module__.startswith("vllm.") else f"activation {type(act).__name__}"
    if up.weight.shape[0] != 2 * down.weight.shape[1]:  # type: ignore[union-attr] # of a kind, so not None
        return None
    biases = {part._parameters.get("bias") is not None for part in (up, down)}  # type: ignore[union-attr] # likewise
    if len(biases) == 2:
        return "one of its projections has a bias and the other has none"
    ranks = {ranks_of(part) for part in (up, down)}  # type: ignore[arg-type] # likewise
    if ranks != {1}:
        if len(ranks) > 1 or biases == {True} or getattr(up, "gather_output", False):
            return f"spread over ranks {sorted(ranks)} with biases or gathered halves"
        if not down.input_is_parallel:  # type: ignore[union-attr] # likewise
            return "its down projection splits its input"
    if biases == {True} and (up.skip_bias_add or down.skip_bias_add):  # type: ignore[union-attr] # likewise
        return "a projection hands its bias on"
    return passed_over(act, host)


def facts_of(module: nn.Module) -> dict[str, Any]:
    """Constructor facts of one rank's share."""
    hidden, inner = module.get_submodule("down_proj").weight.shape  # type: ignore[union-attr,misc] # a matrix
    bias = module.get_submodule("down_proj")._parameters.get("bias") is not None
    act = gate_kind(module._modules["act_fn"])
    return {"hidden_size": hidden, "intermediate_size": inner, "hidden_act": act, "bias": bias}


def state_of(module: nn.Module, under: str = "") -> dict[str, Source]:
    """The parameters under the interface's names, which are the host's."""
    names = [f"{part}.weight" for part in ("gate_up_proj", "down_proj")]
    if facts_of(module)["bias"]:
        names += [f"{part}.bias" for part in ("gate_up_proj", "down_proj")]
    return {name: Param(name).under(under) if under else Param(name) for name in names}
