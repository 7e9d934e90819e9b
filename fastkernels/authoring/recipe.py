"""How an extracted file draws its inputs: statements that make a tensor of a seen shape, dtype and kind of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

PLAIN = (bool, int, float, str, type(None), torch.dtype)
EXPERT_IDS = ("topk_ids", "top_k_index", "router_indices")  # (tokens, experts of a token): a token's are distinct
TURN = "6.283185307179586"  # radians


class NotPlain(Exception):
    """A value that cannot be written down as a literal or drawn: a cache, a function, a module."""


def drawn(name: str, value: Any, *, dtype: torch.dtype, high: Mapping[str, int]) -> list[str]:
    """Statements that set ``name`` to a fresh value like ``value``, from ``generator`` to ``device`` in ``dtype``.

    Args:
        dtype: of the model that was walked: a tensor in it is drawn in the file's own ``dtype``.
        high: what integers stay below, by argument name; ``""`` for all others.

    Raises:
        NotPlain: neither tensor nor literal.

    >>> drawn("x", torch.empty(2, 3), dtype=torch.float32, high={})
    ['x = torch.randn(2, 3, generator=generator).to(device, dtype)']
    >>> drawn("use_cache", False, dtype=torch.float32, high={})
    ['use_cache = False']
    """
    if isinstance(value, (tuple, list)) and any(isinstance(v, torch.Tensor) for v in value):
        names = [f"{name}_{i}" for i in range(len(value))]
        lines = [line for n, v in zip(names, value, strict=True) for line in drawn(n, v, dtype=dtype, high=high)]
        return [*lines, f"{name} = ({', '.join(names)},)"]
    if not isinstance(value, torch.Tensor):
        return [f"{name} = {literal(value, name)}"]
    shape = ", ".join(map(str, value.shape))
    to = "to(device, dtype)" if value.dtype == dtype else f"to(device, {value.dtype})"
    if name in ("cos", "sin"):
        angles = [f"angles = torch.rand({shape}, generator=generator) * {TURN}"] if name == "cos" else []
        return [*angles, f"{name} = angles.{name}().{to}"]
    if name in EXPERT_IDS and name in high:
        rows, experts = shape.rpartition(", ")[0], high[name]
        scores = f"torch.rand({rows}, {experts}, generator=generator)"
        return [f"{name} = {scores}.topk({value.shape[-1]}, dim=-1).indices.to(device)"]
    if name == "topk_weights":
        return [f"{name} = torch.randn({shape}, generator=generator).softmax(dim=-1).{to}"]
    if value.dtype == torch.bool:
        return [f"{name} = torch.ones({shape}, dtype=torch.bool, device=device){_causal(value)}"]
    if not value.is_floating_point():
        return [_integers(name, value, shape, high)]
    if "mask" in name:
        seen = f"torch.ones({shape}, dtype=torch.bool){_causal(value)}"
        return [f"{name} = torch.zeros({shape}).masked_fill(~{seen}, torch.finfo(dtype).min).{to}"]
    return [f"{name} = torch.randn({shape}, generator=generator).{to}"]


def _causal(mask: torch.Tensor) -> str:
    """Each query sees the keys up to its own, where there are as many; every query sees some key."""
    return ".tril()" if mask.dim() == 4 and mask.shape[-1] == mask.shape[-2] else ""


def _integers(name: str, value: torch.Tensor, shape: str, high: Mapping[str, int]) -> str:
    if "position" in name:
        return f"{name} = torch.arange({value.shape[-1]}, device=device).expand({shape})"
    if name not in high and "" not in high:
        raise NotPlain(f"nobody says what the integers in {name} stay below")
    below = high.get(name, high.get("", 0))
    return f"{name} = torch.randint({below}, ({shape},), generator=generator).to(device)"


def literal(value: Any, name: str) -> str:
    """The value as Python source.

    Raises:
        NotPlain: it is no scalar, dtype, or tuple, list or mapping of such.

    >>> literal({"eps": 1e-5, "sizes": (1, 2)}, "facts")
    "{'eps': 1e-05, 'sizes': (1, 2)}"
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {literal(v, name)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(literal(v, name) for v in value)
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    if isinstance(value, bool) or type(value) in (int, float, str, type(None), torch.dtype):
        return repr(value)
    raise NotPlain(f"{name} is a {type(value).__name__}")
