"""softmax: exponentials normalised to a sum of one along one axis.

Computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class Softmax(Interface):
    """Constructor and ``forward`` as ``torch.nn.Softmax``.

    Args:
        dim: the axis that sums to one.

    ``forward(x)`` returns the shape and dtype of x; -inf gives 0, where not all along the axis are.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softmax(x, dim=self.dim, dtype=compute_dtype(x)).to(x.dtype)


class Witness(Softmax):
    """Through the log of the sum of exponentials, of what is left of each row's largest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(compute_dtype(x))
        below = wide - wide.amax(self.dim, keepdim=True)
        return torch.exp(below - below.logsumexp(self.dim, keepdim=True)).to(x.dtype)


class Overflows(Softmax):
    """Cheat: does not subtract the maximum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        powers = torch.exp(x)
        return powers / powers.sum(self.dim, keepdim=True)


class LastAxis(Softmax):
    """Cheat: always the last axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softmax(x, dim=-1)


def cases() -> Iterator[Case]:
    """Last and inner axes, one column, masked entries, large values; attention rows and a vocabulary."""

    def draw(*shape: int, scale: float = 1.0, masked: bool = False) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            x = torch.randn(shape, generator=g) * scale
            if masked:
                hidden = torch.rand(shape, generator=g) < 0.5
                hidden[..., 0] = False
                x = x.masked_fill(hidden, float("-inf"))
            return (x.to(device, dtype),)

        return arguments

    for name, shape in {
        "rows": (3, 64),
        "batch": (2, 5, 96),
        "odd": (7, 77),
        "one_column": (5, 1),
        "empty": (0, 64),
    }.items():
        yield Case(name=name, draw=draw(*shape))
    yield Case(name="inner_axis", init={"dim": 1}, draw=draw(3, 20, 7))
    yield Case(name="masked", draw=draw(6, 40, masked=True))
    yield Case(name="large_values", draw=draw(4, 64, scale=1e3))
    yield Case(name="small_values", draw=draw(4, 64, scale=0.1))
    for rows, width in ((65536, 2048), (64, 128256), (16384, 128)):
        yield Case(name=f"rows_{rows}x{width}", draw=draw(rows, width), production=True)


def cost(module: Softmax, x: torch.Tensor) -> Cost:
    """Input read and output written once; about five operations an element."""
    return Cost(bytes=2 * element_bytes(x), flops=5 * x.numel())


TASK = Task(
    name="softmax",
    level=1,
    family="softmax",
    interface=Softmax,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(Overflows, LastAxis),
)
