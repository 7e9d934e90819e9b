"""The shapes and costs of a task's cases, found without values: production's sizes take no memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkernels.tasks import Case, Cost, Task

CPU = torch.device("cpu")
# What a draw or a cost that looks at values raises where there are none.
NO_VALUES = (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """A case in words: constructor facts, arguments in order, and the least work, where it does not hang on values."""

    name: str
    init: Mapping[str, Any]
    arguments: tuple[str, ...]
    cost: Cost | None


def shaped(task: Task, cases: Iterable[Case], *, dtype: torch.dtype = torch.bfloat16) -> Iterator[Shaped]:
    """The cases of a task in one dtype; by default that of serving."""
    for case in cases:
        cost: Cost | None = None
        with torch.no_grad(), default_dtype(dtype):
            try:
                with FakeTensorMode(allow_non_fake_inputs=True):
                    arguments = case.draw(torch.Generator().manual_seed(0), CPU, dtype)
            except NO_VALUES:  # a captured call's draw picks among samples, by number
                arguments = case.draw(torch.Generator().manual_seed(0), CPU, dtype)
            with FakeTensorMode(allow_non_fake_inputs=True), suppress(*NO_VALUES):
                cost = task.cost(task.interface(**case.init), *arguments)
        yield Shaped(name=case.name, init=case.init, arguments=tuple(map(told, arguments)), cost=cost)


def told(value: Any) -> str:
    """A value in a few words: shape and dtype of a tensor, a scalar itself, else its kind.

    >>> told(torch.empty(2, 3)), told(None), told((1, torch.empty(4, dtype=torch.int64)))
    ('(2, 3) float32', 'None', '[1, (4,) int64]')
    """
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(told, value))}]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return "a function" if callable(value) else f"a {type(value).__name__}"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules are built in this dtype; the former default is set again at the end."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)
