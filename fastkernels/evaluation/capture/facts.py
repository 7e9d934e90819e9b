"""What of a call is written down without its values, and the tensors in it by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fastkernels.evaluation.capture.recipe import LONGEST, name_of
from fastkernels.evaluation.capture.record import Argument, ItemsFact, ObjectFact, TensorFact

LONGEST_LIST = 64  # items


def names_of(forward: Any) -> tuple[str, ...]:
    """Names of a forward's parameters, without ``self``."""
    parameters = inspect.signature(forward).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return tuple(name for name in named if name != "self")


def named(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments by name; positions beyond the names are ``argN``."""
    found = {(names[i] if i < len(names) else f"arg{i}"): value for i, value in enumerate(args)}
    return found | dict(kwargs or {})


def fact_of(value: Any) -> Argument:
    """The fact of one argument.

    >>> fact_of(torch.zeros(2, 3).t()).stride
    (1, 3)
    """
    if isinstance(value, torch.Tensor):
        return TensorFact(
            shape=tuple(value.shape),
            dtype=name_of(value.dtype),
            stride=tuple(value.stride()) if value.layout is torch.strided else None,
            device=value.device.type,
        )
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, (tuple, list)) and len(value) <= LONGEST_LIST:
        return ItemsFact(items=tuple(fact_of(v) for v in value))
    return ObjectFact(object=type(value).__name__)


def key_of(value: Any) -> Any:
    """A hashable that is equal for equal facts: cheaper than a fact, for it is made at every call."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.stride() if value.layout is torch.strided else None, value.device.type
    if isinstance(value, (tuple, list)):
        return ("items", *(key_of(v) for v in value)) if len(value) <= LONGEST_LIST else type(value)
    return (type(value), value) if isinstance(value, (bool, int, float, str)) else type(value)


def tensors_in(arguments: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name, those of tuples as ``name.0``."""
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in({f"{name}.{i}": v for i, v in enumerate(value)})
