"""One implementation behind a shared operator: how to run it, and how to tell that an op's state is its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.runtime.fake import Slot


class Member:
    """An implementation with the slots of its parameters and buffers.

    Attributes:
        run: its method.
        owns: whether tensors are what its slots hold now. Written out as source: a loop takes three times as long.
    """

    def __init__(self, implementation: nn.Module, method: str, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)
        self.run: Callable[..., Any] = getattr(implementation, method)
        tables = {f"table{i}": getattr(s.owner, s.table) for i, s in enumerate(slots)}
        held = [f"table{i}[{s.leaf!r}] is state[{i}]" for i, s in enumerate(slots)]
        self.owns: Callable[[Sequence[torch.Tensor]], bool] = eval(
            f"lambda state: {' and '.join(held) or True}", tables
        )


def takes(method: Callable[..., Any]) -> int:
    """How many positional arguments a method accepts."""
    parameters = inspect.signature(method).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1 << 16
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
