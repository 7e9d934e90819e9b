"""layer_norm: mean and variance normalisation over the last axis (Ba, Kiros and Hinton 2016).

Statistics in float32, one rounding at the end, as torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class LayerNorm(Interface):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis.

    Args:
        hidden_size: width of the last axis, in elements.
        eps: added to the variance.
        weight, bias: whether there is either.

    ``forward(x)`` with x (..., hidden_size) returns the same shape and dtype. State: ``weight`` and ``bias``
    (hidden_size,).
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5, *, weight: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size)) if weight else None
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (self.hidden_size,), self.weight, self.bias, self.eps)


class Witness(LayerNorm):
    """Two passes in float32: the mean, then the centred square."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(compute_dtype(x))
        centred = wide - wide.mean(-1, keepdim=True)
        out = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        out = out if self.weight is None else out * self.weight.to(wide.dtype)
        out = out if self.bias is None else out + self.bias.to(wide.dtype)
        return out.to(x.dtype)


class KeepsTheMean(LayerNorm):
    """Cheat: RMSNorm in place of LayerNorm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.rms_norm(x, (self.hidden_size,), self.weight, self.eps)
        return out if self.bias is None else out + self.bias


class OnePass(LayerNorm):
    """Cheat: variance as ``E[x^2] - E[x]^2``, which a mean far from zero cancels away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, square = x.mean(-1, keepdim=True), x.square().mean(-1, keepdim=True)
        out = (x - mean) * torch.rsqrt((square - mean.square()).clamp_min(0.0) + self.eps)
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias


class NoEps(LayerNorm):
    """Cheat: drops eps, which only rows of small variance show."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (self.hidden_size,), self.weight, self.bias, 1e-30)


def cases() -> Iterator[Case]:
    """One token to a long prefill, odd widths, missing parameters, and ranges that hide or cancel the variance."""

    def draw(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return ((torch.randn(shape, generator=g) * scale + offset).to(device, dtype),)

        return arguments

    for name, shape in {
        "rows": (3, 64),
        "one_row": (1, 128),
        "batch": (2, 5, 96),
        "odd": (7, 77),
        "empty": (0, 64),
    }.items():
        yield Case(name=name, init={"hidden_size": shape[-1]}, draw=draw(*shape))
    for name, init in {
        "no_bias": {"bias": False},
        "no_weight": {"weight": False},
        "bare": {"weight": False, "bias": False},
    }.items():
        yield Case(name=name, init={"hidden_size": 64, **init}, draw=draw(4, 64))
    yield Case(name="small_values", init={"hidden_size": 64}, draw=draw(4, 64, scale=1e-3))
    yield Case(name="large_values", init={"hidden_size": 64}, draw=draw(4, 64, scale=300.0))
    yield Case(name="far_mean", init={"hidden_size": 64}, draw=draw(4, 64, offset=300.0))
    for rows in (1, 64, 2048, 16384):
        yield Case(name=f"width_1024_{rows}", init={"hidden_size": 1024}, draw=draw(rows, 1024), production=True)
        yield Case(name=f"width_4096_{rows}", init={"hidden_size": 4096}, draw=draw(rows, 4096), production=True)


def cost(module: LayerNorm, x: torch.Tensor) -> Cost:
    """Input read and output written once, weight and bias read once; about eight operations an element."""
    return Cost(bytes=2 * element_bytes(x) + element_bytes(module.weight, module.bias), flops=8 * x.numel())


TASK = Task(
    name="layer_norm",
    level=1,
    family="norm",
    interface=LayerNorm,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(KeepsTheMean, OnePass, NoEps),
)
