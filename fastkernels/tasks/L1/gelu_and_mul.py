"""gelu_and_mul: the gate of a GELU-gated MLP, ``gelu(gate) * up`` on one tensor that holds both.

The product is rounded twice, as production does: the activation first, then the product."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import elementwise
from fastkernels.tasks.task import Case, Cost, Task


class GeluAndMul(Interface):
    """vLLM's ``GeluAndMul`` (GEGLU, Shazeer 2020).

    Args:
        approximate: ``none`` for the error function, ``tanh`` for its tanh approximation (Gemma).

    ``forward(x)``: (..., 2 d), gate first, to (..., d) in the same dtype: ``gelu(x[..., :d]) * x[..., d:]``.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"gelu_and_mul: approximate {approximate!r} is not 'none' or 'tanh'")
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.gelu(gate, approximate=self.approximate) * up


class Witness(GeluAndMul):
    """The textbook formulas in float32, rounded once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.to(compute_dtype(x)).tensor_split(2, dim=-1)
        if self.approximate == "tanh":
            share = 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            share = 0.5 * torch.erfc(-gate * math.sqrt(0.5))
        return (gate * share * up).to(x.dtype)


class OtherApproximation(GeluAndMul):
    """Cheat: tanh where the error function is asked for, and the reverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.gelu(gate, approximate="none" if self.approximate == "tanh" else "tanh") * up


class SwapsTheHalves(GeluAndMul):
    """Cheat: activates up instead of gate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1))


def cases() -> Iterator[Case]:
    """The shared activation families, two halves wide, for both formulas."""
    yield from elementwise.cases(halves=2)
    yield from elementwise.cases(halves=2, prefix="tanh_", init={"approximate": "tanh"})


def cost(module: GeluAndMul, x: torch.Tensor) -> Cost:
    """Both halves read once, the product written once; about ten operations an output."""
    return elementwise.cost(x, halves=2, flops_each=10)


TASK = Task(
    name="gelu_and_mul",
    level=1,
    family="activation",
    interface=GeluAndMul,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(OtherApproximation, SwapsTheHalves),
)
