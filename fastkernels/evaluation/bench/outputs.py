"""Return values on their way to the parent: their structure as JSON, their tensors as facts beside the shared copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

SCALARS = (bool, int, float, str, type(None))


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of a return value, in the order in which ``encode`` numbers them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if type(value) in (tuple, list):
        return [t for item in value for t in tensors_of(item)]
    if type(value) is dict:
        return [t for item in value.values() for t in tensors_of(item)]
    return []


def encode(value: Any) -> Any:
    """The structure of a return value as JSON: tensors by number, plain values as they are, the rest by type."""
    count = iter(range(len(tensors_of(value))))

    def one(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return {"tensor": next(count)}
        if type(item) in (tuple, list):
            return {type(item).__name__: [one(i) for i in item]}
        if type(item) is dict:
            return {"dict": [[str(k), one(v)] for k, v in item.items()]}
        if type(item) in SCALARS:
            return {"value": item}
        return {"other": type(item).__name__}

    return one(value)


class Foreign:
    """Stands in the parent for a returned object of another type than any reference returns."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def decode(tree: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The return value that ``encode`` described, over the parent's copies of its tensors.

    Raises:
        ValueError: nothing that ``encode`` writes.
    """
    try:
        ((kind, content),) = tree.items()
        if kind == "tensor":
            return tensors[content]
        if kind in ("tuple", "list"):
            items = [decode(i, tensors) for i in content]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {k: decode(v, tensors) for k, v in content}
        if kind == "value" and isinstance(content, SCALARS):
            return content
        if kind == "other":
            return Foreign(str(content))
    except (AttributeError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"not a description of outputs: {error}") from error
    raise ValueError(f"not a description of outputs: {kind}")


def described(found: Sequence[torch.Tensor], arguments: Any, parameters: Mapping[str, torch.Tensor]) -> list[Any]:
    """Each output's type, shape, stride, dtype, device, and whose memory it shares."""
    inputs = [t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    others = [(f"argument {i}", _range(t)) for i, t in enumerate(inputs)]
    others += [(f"parameter {name}", _range(p)) for name, p in parameters.items()]
    mine = [_range(t) for t in found]
    facts = []
    for i, tensor in enumerate(found):
        shares = [name for name, other in others if _overlap(mine[i], other)]
        shares += [f"output {j}" for j in range(i) if _overlap(mine[i], mine[j])]
        facts.append(
            {
                "type": _kind(tensor),
                "shape": list(_Tensor.size(tensor)),
                "dtype": str(_get("dtype", tensor)).removeprefix("torch."),
                "device": _get("device", tensor).type,
                "shares": shares,
            }
        )
    return facts


_Tensor = torch.Tensor  # its own methods: attributes of an instance could stand in for them


def _get(name: str, tensor: torch.Tensor) -> Any:
    return getattr(torch.Tensor, name).__get__(tensor)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether its elements lie in ordinary memory."""
    return bool(_get("layout", tensor) == torch.strided)


def _kind(tensor: torch.Tensor) -> str:
    """``Tensor``, or what keeps it from being a plain one."""
    kind = type(tensor)
    if kind not in (torch.Tensor, torch.nn.Parameter):
        return kind.__name__
    own = object.__getattribute__(tensor, "__dict__")
    shadows = [name for name in own if kind is torch.Tensor and hasattr(torch.Tensor, name)]
    if shadows:
        return f"Tensor with its own {', '.join(shadows)}"
    layout = _get("layout", tensor)
    return "Tensor" if layout == torch.strided else f"Tensor of layout {layout}"


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last-but-one byte address; an empty range where there is no plain memory behind it."""
    if _get("layout", tensor) != torch.strided or _Tensor.numel(tensor) == 0:
        return (0, 0)
    try:
        start = _Tensor.data_ptr(tensor)
    except RuntimeError:  # a lazy or fake tensor
        return (0, 0)
    shape, stride = _Tensor.size(tensor), _Tensor.stride(tensor)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return (start, start + span * _Tensor.element_size(tensor))


def _overlap(one: tuple[int, int], two: tuple[int, int]) -> bool:
    return max(one[0], two[0]) < min(one[1], two[1])
