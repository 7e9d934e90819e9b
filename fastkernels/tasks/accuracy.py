"""When is an output right? Against a high-precision oracle, and no stricter than production itself is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

# One rounding of the output in each dtype: what even a perfect kernel may differ by.
ROUNDING: Mapping[torch.dtype, float] = MappingProxyType(
    {
        torch.float64: 1e-12,  # two float64 evaluation orders
        torch.float32: 4e-6,  # a few ulp (1.2e-7 each) of a float32 pipeline of several operations
        torch.bfloat16: 2**-8,  # half a bfloat16 spacing, relative
        torch.float16: 2**-11,  # half a float16 spacing, relative
    }
)


@dataclass(frozen=True, kw_only=True)
class Error:
    """Distance of an output from its oracle: ``l2`` relative in the 2-norm, ``peak`` the worst element, relative to
    its own size plus the output's rms."""

    l2: float
    peak: float

    def __str__(self) -> str:
        return f"l2 {self.l2:.2e}, peak {self.peak:.2e}"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An accuracy class: error at most ``factor`` times the production baseline's own, plus ``floor`` roundings.

    The oracle is the task's reference in float64 (float32 for half-precision sites). ``peak`` gets four floors: one
    element may land on the far side of several roundings, a norm over all of them may not.
    """

    name: str
    factor: float = 2.0
    floor: Mapping[torch.dtype, float] = field(default_factory=lambda: ROUNDING)

    def limit(self, baseline: Error, dtype: torch.dtype) -> Error:
        floor = self.floor.get(dtype, ROUNDING[torch.float32])
        return Error(l2=self.factor * baseline.l2 + floor, peak=self.factor * baseline.peak + 4 * floor)

    def accepts(self, candidate: Error, baseline: Error, dtype: torch.dtype) -> bool:
        limit = self.limit(baseline, dtype)
        return candidate.l2 <= limit.l2 and candidate.peak <= limit.peak


ELEMENTWISE = Accuracy(name="elementwise")
CONTRACTION = Accuracy(name="contraction", factor=3.0)  # a different summation order is honest work
EXACT = Accuracy(name="exact", factor=1.0, floor=MappingProxyType(dict.fromkeys(ROUNDING, 0.0)))


def measure(output: torch.Tensor, oracle: torch.Tensor) -> Error:
    """Error of ``output`` against ``oracle`` (same shape, any float or integer dtype).

    Values that are not finite must be equal on both sides, else the error is infinite. Of integers (indices, masks) no
    one is near another: ``l2`` is the share of those that differ, ``peak`` 1 where any does.

    >>> measure(torch.tensor([7, 1001]), torch.tensor([7, 1000]))
    Error(l2=0.5, peak=1.0)
    >>> measure(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0])).l2 > 0.05
    True
    """
    if output.shape != oracle.shape:
        return Error(l2=float("inf"), peak=float("inf"))
    if output.numel() == 0:
        return Error(l2=0.0, peak=0.0)
    if not output.is_floating_point() and not output.is_complex():
        unequal = float((output != oracle).double().mean())
        return Error(l2=unequal, peak=float(unequal > 0))
    got, want = output.detach().to(torch.float64), oracle.detach().to(torch.float64)
    finite = torch.isfinite(want)
    same_outside = torch.equal(torch.nan_to_num(got[~finite]), torch.nan_to_num(want[~finite]))
    if not torch.equal(torch.isfinite(got), finite) or not same_outside:
        return Error(l2=float("inf"), peak=float("inf"))
    got, want = torch.where(finite, got, 0.0), torch.where(finite, want, 0.0)
    difference = got - want
    rms = want.square().mean().sqrt()
    tiny = torch.finfo(torch.float32).tiny
    l2 = difference.norm() / (want.norm() + tiny)
    peak = (difference.abs() / (want.abs() + rms + tiny)).max()
    return Error(l2=float(l2), peak=float(peak))


def worst(errors: list[Error]) -> Error:
    """The worst of several errors, measure by measure; zero for none."""
    return Error(l2=max((e.l2 for e in errors), default=0.0), peak=max((e.peak for e in errors), default=0.0))
