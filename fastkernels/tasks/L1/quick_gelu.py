"""quick_gelu: GELU's sigmoid approximation, ``x * sigmoid(1.702 x)`` (CLIP).

Three separate operations in the input dtype, each rounded, as every production module has it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class QuickGELU(Interface):
    """vLLM's ``QuickGELU``; ``forward(x)`` returns the shape and dtype of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Witness(QuickGELU):
    """As a stretched SiLU in float32, rounded once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (F.silu(1.702 * x.to(compute_dtype(x))) / 1.702).to(x.dtype)


class Exact(QuickGELU):
    """Cheat: the GELU that this one approximates."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x)


class ForgetsTheFactor(QuickGELU):
    """Cheat: SiLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x)


def cases() -> Iterator[Case]:
    """The shared activation families."""
    yield from elementwise.cases()


def cost(module: QuickGELU, x: torch.Tensor) -> Cost:
    """Input read and output written once; about five operations an element."""
    return elementwise.cost(x, flops_each=5)


TASK = Task(
    name="quick_gelu",
    level=1,
    family="activation",
    interface=QuickGELU,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(Exact, ForgetsTheFactor),
    stems=("quickgelu",),
)
