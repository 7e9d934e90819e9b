"""Return values on their way to the parent: their structure as JSON, their tensors as facts beside the shared copy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastkernels.evaluation.bench.shared import Arena, Place

OWN_ELEMENTS = "another of its own elements"
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


def handed_over(
    result: Any, arguments: Any, parameters: Mapping[str, torch.Tensor], arena: Arena, places: Sequence[Place]
) -> dict[str, Any]:
    """What the parent is told of a return value; its tensors are copied to their ``places`` in the parent's ``arena``,
    where they have the shape and dtype that is expected there."""
    found = tensors_of(result)
    copied = []
    for tensor, where in zip(found, places, strict=False):
        fits = is_plain(tensor) and tuple(_Tensor.size(tensor)) == where.shape and tensor.dtype == where.dtype
        if fits:
            _Tensor.copy_(arena.view(where), tensor)
        copied.append(fits)
    return {
        "tree": encode(result),
        "tensors": described(found, arguments, parameters),
        "copied": copied + [False] * (len(found) - len(copied)),
    }


def by_kind(told: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What is told of many calls, each kind of it once, and which kind each call's is.

    >>> by_kind([{"copied": [True]}, {"copied": [False]}, {"copied": [True]}])
    {'kinds': [{'copied': [True]}, {'copied': [False]}], 'which': [0, 1, 0]}
    """
    kinds: dict[str, int] = {}
    found: list[Any] = []
    which: list[int] = []
    for one in told:
        kind = kinds.setdefault(json.dumps(one), len(found))
        if kind == len(found):
            found.append(one)
        which.append(kind)
    return {"kinds": found, "which": which}


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
    """Each output's type, shape, dtype, device, and whose memory it shares."""
    inputs = [t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    others = [(f"argument {i}", _range(t)) for i, t in enumerate(inputs)]
    others += [(f"parameter {name}", _range(p)) for name, p in parameters.items()]
    mine = [_range(t) for t in found]
    facts = []
    for i, tensor in enumerate(found):
        shares = [name for name, other in others if _overlap(mine[i], other)]
        shares += [f"output {j}" for j in range(i) if _overlap(mine[i], mine[j])]
        shares += [OWN_ELEMENTS] if _folded(tensor) else []
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
# What torch itself puts off until a tensor is read; who takes its pointer sees other numbers, or none.
_PENDING = {"negated": _Tensor.is_neg, "conjugated": _Tensor.is_conj, "zeroed": _Tensor._is_zerotensor}


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
    if pending := [what for what, is_so in _PENDING.items() if is_so(tensor)]:
        return f"Tensor that is {pending[0]} when it is read"
    layout = _get("layout", tensor)
    return "Tensor" if layout == torch.strided else f"Tensor of layout {layout}"


def _folded(tensor: torch.Tensor) -> bool:
    """Whether elements share memory: the strides, from the largest down, do not span those below them."""
    if _get("layout", tensor) != torch.strided or _Tensor.numel(tensor) == 0:
        return False
    axes = sorted((step, size) for size, step in zip(_Tensor.size(tensor), _Tensor.stride(tensor), strict=True))
    reach = 0
    for step, size in axes:
        if size > 1 and step <= reach:
            return True
        reach += (size - 1) * step
    return False


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
