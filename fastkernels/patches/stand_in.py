"""A module like another one but smaller, over the same tensors: what probes run where the whole would be too large."""

from __future__ import annotations

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def stand_in(module: nn.Module, memo: dict[int, nn.Module] | None = None) -> nn.Module:
    """New module objects over the very parameters and buffers of ``module``; without hooks and instance forwards.

    Its lists of parts may be cut and its attributes set without the original noticing.
    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    fresh = memo[id(module)] = object.__new__(type(module))
    slots = fresh.__dict__
    slots.update(module.__dict__)
    slots.pop("forward", None)
    slots |= {name: type(slots[name])() for name in HOOKS if name in slots}
    slots["_parameters"], slots["_buffers"] = dict(module._parameters), dict(module._buffers)
    slots["_modules"] = {n: None if c is None else stand_in(c, memo) for n, c in module._modules.items()}
    return fresh


def first_rows(module: nn.Module, rows: int) -> None:
    """Cuts the weight, and the bias where there is one, of an own stand-in to views of their first ``rows`` rows."""
    for name, tensor in module._parameters.items():
        if tensor is not None:
            module._parameters[name] = nn.Parameter(tensor.detach()[:rows], requires_grad=False)
