"""relu: the positive part.

It rounds nothing, so nothing but the exact result is accepted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.accuracy import EXACT
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class ReLU(Interface):
    """Semantics of ``torch.nn.ReLU``; ``forward(x)`` returns ``max(x, 0)`` in the shape and dtype of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


class Witness(ReLU):
    """By a comparison."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


class Leaks(ReLU):
    """Cheat: a slope on the negative side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, 0.01)


class Saturates(ReLU):
    """Cheat: clips at 6, which only a wide input range shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(x)


def cases() -> Iterator[Case]:
    """The shared activation families."""
    yield from elementwise.cases()


def cost(module: ReLU, x: torch.Tensor) -> Cost:
    """Input read and output written once; one operation an element."""
    return elementwise.cost(x, flops_each=1)


TASK = Task(
    name="relu",
    level=1,
    family="activation",
    interface=ReLU,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(Leaks, Saturates),
    accuracy=EXACT,
)
