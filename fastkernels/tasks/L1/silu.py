"""silu: the sigmoid linear unit, ``x * sigmoid(x)`` (Elfwing et al. 2017; Swish).

Computed in float32 and rounded once, as torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class SiLU(Interface):
    """Semantics of ``torch.nn.SiLU``; ``forward(x)`` returns the shape and dtype of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x)


class Witness(SiLU):
    """From the exponential, in float32, rounded once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(compute_dtype(x))
        return (wide / (1.0 + torch.exp(-wide))).to(x.dtype)


class HardSilu(SiLU):
    """Cheat: a piecewise-linear sigmoid instead of the exponential."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.hardswish(x)


class Quick(SiLU):
    """Cheat: GELU's sigmoid approximation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def cases() -> Iterator[Case]:
    """The shared activation families."""
    yield from elementwise.cases()


def cost(module: SiLU, x: torch.Tensor) -> Cost:
    """Input read and output written once; about four operations an element."""
    return elementwise.cost(x, flops_each=4)


TASK = Task(
    name="silu",
    level=1,
    family="activation",
    interface=SiLU,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(HardSilu, Quick),
)
