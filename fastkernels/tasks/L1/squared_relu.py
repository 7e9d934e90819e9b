"""squared_relu: the square of the positive part (Primer, So et al. 2021; Nemotron).

The one activation here that grows faster than its input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class ReLUSquaredActivation(Interface):
    """vLLM's ``ReLUSquaredActivation``; ``forward(x)`` returns ``max(x, 0) ** 2`` in the shape and dtype of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.square(F.relu(x))


class Witness(ReLUSquaredActivation):
    """As ``x * max(x, 0)`` in float32, rounded once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(compute_dtype(x))
        return (wide * wide.clamp_min(0.0)).to(x.dtype)


class ForgetsTheSign(ReLUSquaredActivation):
    """Cheat: squares negative inputs too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.square(x)


class Saturates(ReLUSquaredActivation):
    """Cheat: clips at 6, which only a wide input range shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.square(F.relu6(x))


def cases() -> Iterator[Case]:
    """The shared activation families."""
    yield from elementwise.cases(degree=2)


def cost(module: ReLUSquaredActivation, x: torch.Tensor) -> Cost:
    """Input read and output written once; two operations an element."""
    return elementwise.cost(x, flops_each=2)


TASK = Task(
    name="squared_relu",
    level=1,
    family="activation",
    interface=ReLUSquaredActivation,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(ForgetsTheSign, Saturates),
)
