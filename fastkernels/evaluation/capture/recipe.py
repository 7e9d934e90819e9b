"""Constructor facts as JSON and back, in the notation of the public capture format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

PLAIN = (bool, int, float, str, type(None))
LONGEST = 64  # characters of a string that is kept


def encode(value: Any) -> Any:
    """A plain value, ``{"$dtype"}``, ``{"$tuple"}``, ``{"$dict"}``, ``{"$tensor"}``, or ``{"$opaque": class}``.

    >>> encode({"dtype": torch.float16, "window": (4, 0)})
    {'$dict': {'dtype': {'$dtype': 'float16'}, 'window': {'$tuple': [4, 0]}}}
    """
    if isinstance(value, PLAIN):
        return value[:LONGEST] if isinstance(value, str) else value
    if isinstance(value, torch.dtype):
        return {"$dtype": name_of(value)}
    if isinstance(value, tuple):
        return {"$tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {"$dict": {str(k): encode(v) for k, v in value.items()}}
    if isinstance(value, torch.Tensor):
        return {"$tensor": {"shape": list(value.shape), "dtype": name_of(value.dtype)}}
    return {"$opaque": type(value).__name__}


def decode(value: Any) -> Any:
    """The value that ``encode`` wrote.

    Raises:
        ValueError: it holds a tensor or an object, of which only the kind was written.

    >>> decode(encode((torch.bfloat16, None)))
    (torch.bfloat16, None)
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, held), *rest = value.items()
    if rest or kind not in ("$dtype", "$tuple", "$dict"):
        raise ValueError(f"{value}: only its kind was written, it cannot be built again")
    if kind == "$dtype":
        return dtype_of(held)
    return tuple(decode(v) for v in held) if kind == "$tuple" else {k: decode(v) for k, v in held.items()}


def name_of(dtype: torch.dtype) -> str:
    """``float16`` of ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype that ``name_of`` named, with or without ``torch.``.

    Raises:
        ValueError: there is none of that name.
    """
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name} is no dtype of torch")
    return found
