"""Does everything that a binding relies on still hold? Asked at every call, so it is one compiled expression."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import nn

from fastkernels.patches.site import Proposal
from fastkernels.patches.source import Merge

Pin = tuple[dict[str, Any], str, Any]
ABSENT = object()
# Attributes that do not change what a module in evaluation mode computes; hosts set them as they go.
NOT_READ = frozenset({"training", "gradient_checkpointing", "is_torch_compile"})


def pins_of(module: nn.Module, proposal: Proposal, *, family: object) -> list[Pin]:
    """What the binding relies on, as (dict, key, value that must be there): inner modules in place and without a
    forward but what the same patch (``family``) put beneath, the Parameter objects bound, the attributes that facts
    froze and every number and switch of the modules passed over, evaluation mode for dropout."""
    pins: list[Pin] = [(module.__dict__, name, module.__dict__[name]) for name in proposal.reads]
    pins += [(vars(owner), name, vars(owner).get(name, ABSENT)) for owner, name in proposal.watches]
    pins += _numbers(module)
    if proposal.drops:
        pins.append((module.__dict__, "training", False))
    for name in proposal.inner:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        child = owner._modules[leaf]
        pins.append((owner._modules, leaf, child))
        for part in child.modules() if child is not None else ():
            beneath = part.__dict__.get("forward")
            ours = beneath is not None and getattr(beneath, "family", None) is family
            pins.append((part.__dict__, "forward", beneath if ours else ABSENT))
            pins += [(part._modules, key, value) for key, value in part._modules.items()]
            pins += _numbers(part)
            if proposal.drops and _drops(part):
                pins.append((part.__dict__, "training", False))
    for source in proposal.state.values():
        for name in source.names:
            owner = module.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            slots = owner._parameters if leaf in owner._parameters else owner._buffers
            pins.append((slots, leaf, slots[leaf]))
    return list({(id(slots), key): (slots, key, value) for slots, key, value in pins}.values())


def _numbers(part: nn.Module) -> list[Pin]:
    """Epsilons, scales, caps and flags: the shapes of a module say nothing of a change to them."""
    if isinstance(part, nn.Dropout):
        return []
    values = part.__dict__.items()
    read = ((k, v) for k, v in values if k not in NOT_READ and not (type(v) is bool and k.startswith("_")))
    return [(part.__dict__, k, v) for k, v in read if type(v) in (float, bool)]


def _drops(part: nn.Module) -> bool:
    """Whether in training mode the part itself would drop anything."""
    rates = (v for k, v in part.__dict__.items() if type(v) is float and ("dropout" in k or k == "p"))
    return any(rate > 0 for rate in rates)


def hooks_of(module: nn.Module, proposal: Proposal) -> list[tuple[str, Mapping[int, Any]]]:
    """Hook tables of the inner modules: a hook there would not fire while a candidate computes in their stead."""
    tables: list[tuple[str, Mapping[int, Any]]] = []
    for name in proposal.inner:
        for path, part in module.get_submodule(name).named_modules():
            label = f"{name}.{path}" if path else name
            tables += [(label, part._forward_hooks), (label, part._forward_pre_hooks)]
    return tables


def firing(hooks: Iterable[tuple[str, Mapping[int, Any]]], idle: Callable[[Any], bool] | None) -> str | None:
    """Path of a module with a hook that would do something, or None."""
    return next((path for path, table in hooks for h in table.values() if idle is None or not idle(h)), None)


def numbers_of(pins: Sequence[Pin]) -> tuple[list[Pin], list[Pin]]:
    """Pins of numbers, and the others."""
    numbers = [pin for pin in pins if type(pin[2]) in (int, float)]
    return numbers, [pin for pin in pins if type(pin[2]) not in (int, float)]


def unchanged(numbers: Sequence[Pin], others: Sequence[Pin]) -> bool:
    """All pins hold; written for Dynamo, to which each comparison is a guard that any site of one structure passes.

    Where one code object runs several modules whose numbers differ, Dynamo has symbols for them, which are no objects.
    """
    for slots, key, number in numbers:
        if key not in slots or slots[key] != number:
            return False
    for slots, key, value in others:
        if value is ABSENT:
            if key in slots:
                return False
        elif key not in slots or slots[key] is not value:
            return False
    return True


def compile_check(pins: Sequence[Pin], merges: Sequence[Merge], viewed: Sequence[torch.Tensor]) -> Callable[[], bool]:
    """A function of no arguments that is True while all pins hold, and merged and viewed parameters lie where they did.

    It is generated source, one ``d["key"] is value and ...`` over globals of its own. Loops and maps in C over the
    same pins take longer; comparing whole dicts takes less, but an equal value would pass for the very one. The source
    says nothing but the structure, so that it is compiled once for all layers of a model.
    """
    scope: dict[str, Any] = {}
    terms: list[str] = []
    for i, (slots, key, value) in enumerate(pins):
        scope[f"d{i}"], scope[f"v{i}"] = slots, value
        terms.append(f"{key!r} not in d{i}" if value is ABSENT else f"d{i}[{key!r}] is v{i}")
    addresses = [a for merge in merges for a in merge.addresses()] + [(p, p.data_ptr()) for p in viewed]
    for i, (parameter, address) in enumerate({id(p): (p, a) for p, a in addresses}.values()):
        scope[f"p{i}"], scope[f"a{i}"] = parameter.data_ptr, address
        terms.append(f"p{i}() == a{i}")
    exec(_compiled(" and ".join(terms) or "True"), scope)
    holds: Callable[[], bool] = scope["holds"]
    return holds


@functools.lru_cache(maxsize=64)
def _compiled(expression: str) -> CodeType:
    source = f"def holds():\n    try:\n        return {expression}\n    except KeyError:\n        return False\n"
    return compile(source, "<fastkernels liveness>", "exec")
