"""silu_and_mul: the gate of a gated MLP, ``silu(gate) * up`` on one tensor that holds both.

The product is rounded twice, as production does: the activation first, then the product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class SiluAndMul(Interface):
    """vLLM's ``SiluAndMul`` (SwiGLU, Shazeer 2020).

    ``forward(x)``: (..., 2 d), gate first, to (..., d) in the same dtype: ``silu(x[..., :d]) * x[..., d:]``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up


class Witness(SiluAndMul):
    """From the exponential, in float32, rounded once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.to(compute_dtype(x)).tensor_split(2, dim=-1)
        return (gate / (1.0 + torch.exp(-gate)) * up).to(x.dtype)


class SwapsTheHalves(SiluAndMul):
    """Cheat: activates up instead of gate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return gate * F.silu(up)


class HardSilu(SiluAndMul):
    """Cheat: a piecewise-linear sigmoid instead of the exponential."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.hardswish(gate) * up


def cases() -> Iterator[Case]:
    """The shared activation families, two halves wide."""
    yield from elementwise.cases(halves=2)


def cost(module: SiluAndMul, x: torch.Tensor) -> Cost:
    """Both halves read once, the product written once; about five operations an output."""
    return elementwise.cost(x, halves=2, flops_each=5)


TASK = Task(
    name="silu_and_mul",
    level=1,
    family="activation",
    interface=SiluAndMul,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SwapsTheHalves, HardSilu),
)
