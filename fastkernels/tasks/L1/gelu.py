"""gelu: the Gaussian error linear unit (Hendrycks and Gimpel 2016), exact or by its tanh approximation.

Computed in float32 and rounded once, as torch's own."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class GELU(Interface):
    """Constructor and ``forward`` as ``torch.nn.GELU``.

    Args:
        approximate: ``none`` for the error function, ``tanh`` for its tanh approximation.

    ``forward(x)`` returns the shape and dtype of x.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"gelu: approximate {approximate!r} is not 'none' or 'tanh'")
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate=self.approximate)


class Witness(GELU):
    """The textbook formulas in float32, rounded once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(compute_dtype(x))
        if self.approximate == "tanh":
            share = 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)))
        else:
            share = 0.5 * torch.erfc(-wide * math.sqrt(0.5))
        return (wide * share).to(x.dtype)


class OtherApproximation(GELU):
    """Cheat: tanh where the error function is asked for, and the reverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="none" if self.approximate == "tanh" else "tanh")


class Quick(GELU):
    """Cheat: the sigmoid approximation for either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def cases() -> Iterator[Case]:
    """The shared activation families for both formulas."""
    yield from elementwise.cases()
    yield from elementwise.cases(prefix="tanh_", init={"approximate": "tanh"})


def cost(module: GELU, x: torch.Tensor) -> Cost:
    """Input read and output written once; about ten operations an element."""
    return elementwise.cost(x, flops_each=10)


TASK = Task(
    name="gelu",
    level=1,
    family="activation",
    interface=GELU,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(OtherApproximation, Quick),
)
