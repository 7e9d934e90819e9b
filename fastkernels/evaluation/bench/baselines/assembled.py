"""Modules of level 2 and up as production runs them: the reference's wiring around a library's kernels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.runtime.candidate import Candidate, as_candidate
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.registry import by_interface


def assemble(module: nn.Module, kernels: Sequence[type[nn.Module]]) -> int:
    """Puts each of the library's ``kernels`` in place of the references inside ``module``; returns how many it put.

    One stays out where it does not support the device that modules are being built on, or the constructor facts. Of
    dtypes the caller has to know, since modules are cast later.
    """
    of_task = {c.task.name: c for c in map(as_candidate, kernels)}
    put = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            task = by_interface().get(type(child))
            kernel = of_task.get(task.name) if task is not None else None
            if kernel is None or not isinstance(child, Interface) or _refusal(kernel, facts_of(child)) is not None:
                continue
            args, kwargs = child.constructed_with
            setattr(parent, name, kernel.cls(*args, **kwargs))
            put += 1
    return put


def facts_of(module: Interface) -> Mapping[str, Any]:
    """The constructor facts that ``module`` was built from, defaults included."""
    args, kwargs = module.constructed_with
    bound = inspect.signature(type(module)).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _refusal(kernel: Candidate, facts: Mapping[str, Any]) -> str | None:
    dtype = (kernel.supports.dtypes or (torch.bfloat16,))[0]
    return kernel.supports.refusal(device=torch.get_default_device(), dtype=dtype, facts=facts)
