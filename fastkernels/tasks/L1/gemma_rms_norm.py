"""gemma_rms_norm: root-mean-square normalisation whose weight is an offset from one (Gemma).

Not a variant of ``rms_norm``: another weight, and another place where the result is rounded."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1 import rms_norm
from fastkernels.tasks.task import Case, Cost, Task, element_bytes


class GemmaRMSNorm(Interface):
    """Constructor and ``forward`` as vLLM's ``GemmaRMSNorm``.

    Args:
        hidden_size: width of the last axis, in elements.
        eps: added to the mean square.

    ``forward(x)`` with x (..., hidden_size) returns ``x / rms(x) * (1 + weight)``, computed in float32 and rounded
    once. ``forward(x, residual)`` adds first and returns ``(normed, x + residual)``, the sum rounded to the dtype of
    x. State: ``weight`` (hidden_size,), zeros at first.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is not None:
            x = residual = residual + x
        normed = rms_norm.normalize(x, self.eps)
        out = (normed * (1.0 + self.weight.to(normed.dtype))).to(x.dtype)
        return out if residual is None else (out, residual)


class Witness(GemmaRMSNorm):
    """Through torch's own fused ``rms_norm`` in float32, the weight raised by one."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        summed = x if residual is None else x + residual
        wide = summed.to(compute_dtype(x))
        out = F.rms_norm(wide, (self.hidden_size,), self.weight.to(wide.dtype) + 1.0, self.eps).to(x.dtype)
        return out if residual is None else (out, summed)


class ForgetsTheOne(GemmaRMSNorm):
    """Cheat: Llama's norm, the weight as it is."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        summed = x if residual is None else x + residual
        out = F.rms_norm(summed, (self.hidden_size,), self.weight, self.eps)
        return out if residual is None else (out, summed)


class NoEps(GemmaRMSNorm):
    """Cheat: drops eps, which only small inputs show."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, 0.0)


def cases() -> Iterator[Case]:
    """The ``rms_norm`` families that have the one weight there is here."""
    yield from (case for case in rms_norm.cases() if set(case.init) <= {"hidden_size", "eps"})


def cost(module: GemmaRMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None) -> Cost:
    """Input (and residual) read and written once, the weight read once; about four operations an element."""
    passes = 2 if residual is None else 4
    return Cost(bytes=passes * element_bytes(x) + element_bytes(module.weight), flops=4 * x.numel())


TASK = Task(
    name="gemma_rms_norm",
    level=1,
    family="norm",
    interface=GemmaRMSNorm,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(ForgetsTheOne, NoEps),
)
