"""Input families and costs that the pointwise activations share, gated (``*_and_mul``) or not.

No task of its own: it only keeps silu, gelu, relu and their like from repeating one another's shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fastkernels.tasks.task import Case, Cost, Draw, element_bytes


def cases(
    *, halves: int = 1, degree: int | None = None, prefix: str = "", init: Mapping[str, Any] | None = None
) -> Iterator[Case]:
    """Inputs of width ``halves * d``: small, odd, empty, then the ranges in which approximations show.

    ``init`` goes to the constructor; ``prefix`` keeps the names of several families of one task apart; ``degree`` is
    the power of the input that outputs grow with, ``halves`` if None: of more than one, float16 holds a smaller range.
    """
    init = init or {}
    degree = halves if degree is None else degree

    def draw(*shape: int, scale: float = 1.0) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            held = min(max(scale, 1e-2), 30.0) if degree > 1 and dtype == torch.float16 else scale
            return ((torch.randn(*shape[:-1], halves * shape[-1], generator=g) * held).to(device, dtype),)

        return arguments

    def sweep(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        columns = [torch.linspace(-40.0, 40.0, 161)[torch.randperm(161, generator=g)] for _ in range(halves)]
        return (torch.cat(columns)[None].to(device, dtype),)

    for name, shape in {"rows": (3, 64), "one": (1, 1), "batch": (2, 5, 96), "odd": (7, 77), "empty": (0, 64)}.items():
        yield Case(name=prefix + name, init=init, draw=draw(*shape))
    yield Case(name=f"{prefix}wide_range", init=init, draw=sweep)
    yield Case(name=f"{prefix}small_values", init=init, draw=draw(4, 64, scale=1e-4))
    yield Case(name=f"{prefix}large_values", init=init, draw=draw(4, 64, scale=300.0))
    for rows in (1, 64, 2048, 16384):
        yield Case(name=f"{prefix}rows_{rows}", init=init, draw=draw(rows, 14336), production=True)


def cost(x: torch.Tensor, *, halves: int = 1, flops_each: int) -> Cost:
    """Input read once, output (the input's size over ``halves``) written once."""
    return Cost(bytes=element_bytes(x) * (halves + 1) // halves, flops=flops_each * x.numel() // halves)
