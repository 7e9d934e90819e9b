"""rms_norm: root-mean-square normalisation, alone or fused with the residual add before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


def normalize(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x)`` over the last axis, in the compute dtype of ``x`` (float32 for narrower inputs)."""
    wide = x.to(compute_dtype(x))
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


class RMSNorm(Interface):
    """Zhang and Sennrich 2019; constructor and ``forward`` as vLLM's ``RMSNorm``.

    Args:
        hidden_size: width of the last axis, in elements.
        eps: added to the mean square.
        has_weight: without, the output is only normalised.
        late_cast: multiply by the weight in float32 and round once (OLMo); else round, then multiply (Llama).

    ``forward(x)`` with x (..., hidden_size) returns the same shape and dtype. ``forward(x, residual)`` adds first and
    returns ``(normed, x + residual)``, the sum rounded to the dtype of x.
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-6, *, has_weight: bool = True, late_cast: bool = False
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.late_cast = late_cast
        self.weight = nn.Parameter(torch.ones(hidden_size)) if has_weight else None

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is not None:
            x = residual = residual + x
        normed = normalize(x, self.eps)
        if self.weight is None:
            out = normed.to(x.dtype)
        elif self.late_cast:
            out = (normed * self.weight.to(normed.dtype)).to(x.dtype)
        else:
            out = self.weight * normed.to(x.dtype)
        return out if residual is None else (out, residual)


class Witness(RMSNorm):
    """Through torch's own fused ``rms_norm``, an implementation of another origin."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        summed = x if residual is None else x + residual
        out = torch.nn.functional.rms_norm(summed, (self.hidden_size,), self.weight, self.eps)
        return out if residual is None else (out, summed)


class NoEps(RMSNorm):
    """Cheat: drops eps, which only small inputs show."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        eps, self.eps = self.eps, 0.0
        try:
            return super().forward(x, residual)
        finally:
            self.eps = eps


class HalfRow(RMSNorm):
    """Cheat: takes the statistic from the first half of each row."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        summed = x if residual is None else x + residual
        half = summed[..., : self.hidden_size // 2]
        out = (summed * torch.rsqrt(half.float().pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        out = out if self.weight is None else self.weight * out
        return out if residual is None else (out, summed)


def cases() -> Iterator[Case]:
    """Shapes from one token to a long prefill, odd widths, and the value ranges that hide mistakes."""

    def draw(shape: tuple[int, ...], *, scale: float = 1.0, residual: bool = False) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return tuple(
                (torch.randn(shape, generator=g) * scale).to(device, dtype) for _ in range(2 if residual else 1)
            )

        return arguments

    for name, shape in {
        "rows": (3, 64),
        "one_row": (1, 128),
        "batch": (2, 5, 96),
        "odd": (7, 77),
        "empty": (0, 64),
    }.items():
        yield Case(name=name, init={"hidden_size": shape[-1]}, draw=draw(shape))
        yield Case(name=f"{name}_residual", init={"hidden_size": shape[-1]}, draw=draw(shape, residual=True))
    yield Case(name="small_values", init={"hidden_size": 64, "eps": 1e-5}, draw=draw((4, 64), scale=1e-3))
    yield Case(name="large_values", init={"hidden_size": 64}, draw=draw((4, 64), scale=300.0))
    yield Case(name="no_weight", init={"hidden_size": 64, "has_weight": False}, draw=draw((4, 64)))
    yield Case(name="late_cast", init={"hidden_size": 64, "late_cast": True}, draw=draw((4, 64)))
    for rows in (1, 64, 2048, 16384):
        yield Case(name=f"llama_{rows}", init={"hidden_size": 4096}, draw=draw((rows, 4096)), production=True)
        yield Case(
            name=f"llama_{rows}_residual",
            init={"hidden_size": 4096},
            draw=draw((rows, 4096), residual=True),
            production=True,
        )


def cost(module: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None) -> Cost:
    """Input (and residual) read and written once, the weight read once; about four operations an element."""
    passes = 2 if residual is None else 4
    return Cost(bytes=passes * element_bytes(x) + element_bytes(module.weight), flops=4 * x.numel())


TASK = Task(
    name="rms_norm",
    level=1,
    family="norm",
    interface=RMSNorm,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(NoEps, HalfRow),
    stems=("rms_norm_native", "t5_layer_norm"),
)
