"""fused_add_rms_norm: the residual add and the norm that follows it, as one operator.

Host modules have no seam for it: the add stands in a layer's ``forward``. The layer's reference carries it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1 import rms_norm
from fastkernels.tasks.task import Case, Cost, Task


class FusedAddRMSNorm(Interface):
    """vLLM's ``fused_add_rms_norm`` as a module.

    ``forward(x, residual)``, both (..., hidden_size), returns ``(rms_norm(x + residual), x + residual)``; the sum is
    rounded to the dtype of x before it is normalised. State: ``norm.weight``; ``norm`` is an ``rms_norm`` of its own.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6, *, late_cast: bool = False) -> None:
        super().__init__()
        self.norm = rms_norm.RMSNorm(hidden_size, eps, late_cast=late_cast)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(x, residual)


class Witness(FusedAddRMSNorm):
    """The add in torch, then torch's own fused norm."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.add(x, residual)
        return torch.nn.functional.rms_norm(total, total.shape[-1:], self.norm.weight, self.norm.eps), total


class ForgetsTheSum(FusedAddRMSNorm):
    """Cheat: returns the old residual, so the stream never grows."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(x, residual)[0], residual


class SkipsTheAdd(FusedAddRMSNorm):
    """Cheat: normalises x alone."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(x), x + residual


def cases() -> Iterator[Case]:
    """The residual members of the ``rms_norm`` families."""
    for case in rms_norm.cases():
        if case.name.endswith("_residual"):
            yield case


def cost(module: FusedAddRMSNorm, x: torch.Tensor, residual: torch.Tensor) -> Cost:
    return rms_norm.cost(module.norm, x, residual)


TASK = Task(
    name="fused_add_rms_norm",
    level=2,
    family="norm",
    interface=FusedAddRMSNorm,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(ForgetsTheSum, SkipsTheAdd),
    parts=("rms_norm",),
)
