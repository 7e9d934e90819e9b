"""Structured contents and other shapes for a task's arguments: what a kernel fitted to random values gets wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastkernels.tasks.tensors import tensors

HIDDEN_SIZES = (1, 0, 17, 63)
LARGE = (1e4, 1e2, 16.0)  # tried from the left: the first that the reference survives
# Products of two overflow early in float16; and in a block a softmax over them turns on roundings, seldom but wholly.
LARGE_PRODUCTS = (4.0,)
CLUSTER = 512  # most values of a cluster that differ
Fill = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def structured(
    arguments: tuple[Any, ...], generator: torch.Generator, *, large: Sequence[float] = LARGE
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """``arguments`` (packed) with other contents, by name; several of one name are alternatives, the best first.

    ``large`` are the sizes of large values. Tensors with values that are not finite, and bools, are masks and stay.
    """
    floats = {
        "zeros": _zeros,
        "ones": lambda t, g: torch.ones_like(t),
        "all_equal": lambda t, g: torch.full_like(t, float(torch.empty(()).uniform_(0.25, 2.0, generator=g))),
        "tiny": lambda t, g: _scaled(t, 1e-4),
        "denormal": lambda t, g: _scaled(t, torch.finfo(t.dtype).tiny / 8),
        "one_hot": _one_hot,
        "clustered": _clustered,
        "mixed_scales": _mixed_scales,
        "equal_rows": lambda t, g: _equal_rows(t),
    }
    if any(is_data(t) for t in tensors(arguments)):
        for name, fill in floats.items():
            yield name, _filled(arguments, fill, generator, is_data)
        for scale in large:
            yield "large", _filled(arguments, _times(scale), generator, is_data)
    if any(is_index(t) for t in tensors(arguments)):
        # All rows to the same experts, tokens or positions: routing as imbalanced as it can be.
        yield "one_index", _filled(arguments, lambda t, g: _equal_rows(t), generator, is_index)


def is_data(t: torch.Tensor) -> bool:
    """Whether the values may be changed freely: floating point, and finite, unlike those of an additive mask."""
    return t.is_floating_point() and bool(torch.isfinite(t).all())


def is_index(t: torch.Tensor) -> bool:
    return not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool and t.dim() > 0


def sequences(arguments: Any) -> list[int]:
    """The different sizes of the last axis but one, of tensors with as many axes as the first that has three."""
    found = [t for t in tensors(arguments) if t.dim() > 2 and t.is_floating_point()]
    return list(dict.fromkeys(t.shape[-2] for t in found if t.dim() == found[0].dim() and t.shape[-2] > 1))


def resized(draws: Sequence[tuple[Any, ...]], *, old: int, new: int, first_axis: bool) -> tuple[Any, ...]:
    """The arguments with ``new`` where their shapes have ``old``, contents from several draws.

    ``first_axis`` resizes the leading axis, else all others but the last of the first tensor of three axes.
    """
    leaves, spec = pytree.tree_flatten(draws[0])
    others = [pytree.tree_leaves(d) for d in draws[1:]]
    main = next((i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.dim() > 2), None)

    def one(i: int, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0:
            return leaf
        axes = range(1) if first_axis else range(1, leaf.dim() - (i == main))
        parts = [leaf, *(o[i] for o in others)]
        for axis in (a for a in axes if leaf.shape[a] == old):
            whole = torch.cat(parts, dim=axis)
            repeats = math.ceil(new / whole.shape[axis]) if whole.shape[axis] else 0
            leaf = torch.cat([whole] * max(repeats, 1), dim=axis).narrow(axis, 0, new).clone()
            parts = [leaf]
        return leaf

    return pytree.tree_unflatten([one(i, leaf) for i, leaf in enumerate(leaves)], spec)


def _filled(
    arguments: tuple[Any, ...], fill: Fill, generator: torch.Generator, which: Callable[[torch.Tensor], bool]
) -> tuple[Any, ...]:
    def one(t: torch.Tensor) -> torch.Tensor:
        return fill(t, generator) if which(t) and t.numel() else t.clone()

    return pytree.tree_map_only(torch.Tensor, one, arguments)


def _zeros(t: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return torch.zeros_like(t)


def _scaled(t: torch.Tensor, size: float) -> torch.Tensor:
    """``t`` with values of about ``size``; in double, for the scale may be no number of its dtype."""
    rms = t.double().square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return (t.double() / rms * size).to(t.dtype)


def _times(scale: float) -> Fill:
    return lambda t, g: _scaled(t, scale)


def _one_hot(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if t.dim() == 0:
        return torch.ones_like(t)
    hot = torch.randint(t.shape[-1], t.shape[:-1], generator=generator).to(t.device)
    return torch.zeros_like(t).scatter_(-1, hot[..., None], 1.0)


def _clustered(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Neighbours in bfloat16 from 1 upward, shuffled along the last axis: the near ones must still be told apart."""
    if t.dim() == 0:
        return torch.ones_like(t)
    width = t.shape[-1]
    there = torch.Generator(t.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    order = torch.rand(t.shape, generator=there, device=t.device).argsort(dim=-1) % min(width, CLUSTER)
    one = int(torch.ones((), dtype=torch.bfloat16).view(torch.int16))
    return (order + one).to(torch.int16).view(torch.bfloat16).to(t.dtype)


def _mixed_scales(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows of very different size: an error in a small one is a large one. None is larger than it was."""
    if t.dim() < 2:
        return t.clone()
    powers = torch.randint(-12, 1, (*t.shape[:-1], 1), generator=generator).double().exp2()
    return (t.double() * powers.to(t.device)).to(t.dtype)


def _equal_rows(t: torch.Tensor) -> torch.Tensor:
    return t[:1].expand_as(t).clone() if t.dim() > 0 else t.clone()
