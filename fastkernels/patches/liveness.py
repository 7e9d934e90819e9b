"""Does everything that a binding relies on still hold? Asked at every call, so it is one compiled expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.patches.site import Proposal
from fastkernels.patches.source import Merge

Pin = tuple[dict[str, Any], str, Any]
ABSENT = object()


def pins_of(module: nn.Module, proposal: Proposal) -> list[Pin]:
    """What the binding relies on, as (dict, key, value that must be there): inner modules in place and without a
    forward of their own, the Parameter objects bound, the attributes that facts froze, evaluation mode for dropout."""
    pins: list[Pin] = [(module.__dict__, name, module.__dict__[name]) for name in proposal.reads]
    pins += [(vars(owner), name, vars(owner)[name]) for owner, name in proposal.watches]
    if proposal.drops:
        pins.append((module.__dict__, "training", False))
    for name in proposal.inner:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        child = owner._modules[leaf]
        pins.append((owner._modules, leaf, child))
        for part in child.modules() if child is not None else ():
            pins.append((part.__dict__, "forward", ABSENT))
            pins += [(part._modules, key, value) for key, value in part._modules.items()]
    for source in proposal.state.values():
        for name in source.names:
            owner = module.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            slots = owner._parameters if leaf in owner._parameters else owner._buffers
            pins.append((slots, leaf, slots[leaf]))
    return pins


def hooks_of(module: nn.Module, proposal: Proposal) -> list[tuple[str, Mapping[int, Any]]]:
    """Hook tables of the inner modules: a hook there would not fire while a candidate computes in their stead."""
    tables: list[tuple[str, Mapping[int, Any]]] = []
    for name in proposal.inner:
        for path, part in module.get_submodule(name).named_modules():
            label = f"{name}.{path}" if path else name
            tables += [(label, part._forward_hooks), (label, part._forward_pre_hooks)]
    return tables


def compile_check(pins: Sequence[Pin], merges: Sequence[Merge], viewed: Sequence[torch.Tensor]) -> Callable[[], bool]:
    """A function of no arguments that is True while all pins hold, and merged and viewed parameters lie where they did.

    It is generated source, one ``d["key"] is value and ...`` over constants: a loop over the same pins took four
    times as long, and a decode step asks some two hundred times. Traced by Dynamo it leaves addresses out; a graph
    takes parameters by identity.
    """
    scope: dict[str, Any] = {"tracing": torch.compiler.is_dynamo_compiling}
    terms: list[str] = []
    for i, (slots, key, value) in enumerate(pins):
        scope[f"d{i}"], scope[f"v{i}"] = slots, value
        terms.append(f"{key!r} not in d{i}" if value is ABSENT else f"d{i}[{key!r}] is v{i}")
    addresses = [a for merge in merges for a in merge.addresses()] + [(p, p.data_ptr()) for p in viewed]
    for i, (parameter, address) in enumerate(addresses):
        scope[f"p{i}"] = parameter.data_ptr
        terms.append(f"{'' if i else '(tracing() or ('}p{i}() == {address}" + ("))" if i == len(addresses) - 1 else ""))
    body = " and ".join(terms) or "True"
    arguments = ", ".join(f"{name}={name}" for name in scope)
    source = f"def holds({arguments}):\n    try:\n        return {body}\n    except KeyError:\n        return False\n"
    exec(source, scope)
    return scope["holds"]
