"""rms_norm_gated: root-mean-square normalisation and an activated gate, in either order.

The output norm of linear attention and state-space layers (Gated DeltaNet, Kimi Linear, Mamba 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1.rms_norm import normalize
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}


class RMSNormGated(Interface):
    """Semantics of transformers' ``Qwen3NextRMSNormGated`` (gate last) and ``MambaRMSNormGated`` (gate first).

    Args:
        hidden_size: width of the last axis, in elements.
        eps: added to the mean square.
        activation: of the gate, ``silu`` or ``sigmoid``.
        norm_before_gate: normalise, round, weigh, then multiply by the gate in float32 and round again; else multiply
            by the gate first, all in float32, then normalise, round and weigh.

    ``forward(x, z)``, both (..., hidden_size), returns the same shape and dtype; z is the gate. State: ``weight``
    (hidden_size,).
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, *, activation: str = "silu", norm_before_gate: bool = True
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"rms_norm_gated: activation {activation!r} is not one of {tuple(ACTIVATIONS)}")
        self.hidden_size = hidden_size
        self.eps = eps
        self.activation = activation
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        gate = ACTIVATIONS[self.activation](z.to(compute_dtype(x)))
        if self.norm_before_gate:
            return (self.weight * normalize(x, self.eps).to(x.dtype) * gate).to(x.dtype)
        return self.weight * normalize(x.to(gate.dtype) * gate, self.eps).to(x.dtype)


class Witness(RMSNormGated):
    """Through torch's own fused ``rms_norm`` in float32, the gate from its exponential, rounded once."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        wide, raw, weight = (t.to(compute_dtype(x)) for t in (x, z, self.weight))
        gate = 1.0 / (1.0 + torch.exp(-raw))
        gate = gate * raw if self.activation == "silu" else gate
        if self.norm_before_gate:
            return (F.rms_norm(wide, (self.hidden_size,), weight, self.eps) * gate).to(x.dtype)
        return F.rms_norm(wide * gate, (self.hidden_size,), weight, self.eps).to(x.dtype)


class OtherOrder(RMSNormGated):
    """Cheat: gates after where before is asked for, and the reverse."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, *, norm_before_gate: bool = True, **rest: Any) -> None:
        super().__init__(hidden_size, eps, norm_before_gate=not norm_before_gate, **rest)


class ForgetsTheActivation(RMSNormGated):
    """Cheat: multiplies by the raw gate."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if self.norm_before_gate:
            return self.weight * normalize(x, self.eps) * z
        return self.weight * normalize(x * z, self.eps)


class NoEps(RMSNormGated):
    """Cheat: drops eps, which only small inputs show."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, **rest: Any) -> None:
        super().__init__(hidden_size, 0.0, **rest)


def cases() -> Iterator[Case]:
    """Both orders and activations on small, odd, empty and extreme rows; Qwen3-Next's heads and Mamba 2's rows."""

    def draw(*shape: int, scale: float = 1.0) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return tuple((torch.randn(shape, generator=g) * scale).to(device, dtype) for _ in range(2))

        return arguments

    for first, order in ((True, "norm_first"), (False, "gate_first")):
        init: dict[str, Any] = {"norm_before_gate": first}
        for name, shape in {"rows": (3, 64), "batch": (2, 5, 96), "odd": (7, 77), "empty": (0, 64)}.items():
            yield Case(name=f"{order}_{name}", init={"hidden_size": shape[-1], **init}, draw=draw(*shape))
        init["hidden_size"] = 64
        yield Case(name=f"{order}_sigmoid", init={"activation": "sigmoid", **init}, draw=draw(4, 64))
        yield Case(name=f"{order}_small_values", init=init, draw=draw(4, 64, scale=1e-3))
        yield Case(name=f"{order}_large_values", init=init, draw=draw(4, 64, scale=30.0))
    for tokens in (1, 64, 2048):
        heads = {"hidden_size": 128, "eps": 1e-6}
        yield Case(name=f"qwen3_next_{tokens}", init=heads, draw=draw(tokens * 32, 128), production=True)
        row = {"hidden_size": 5120, "norm_before_gate": False}
        yield Case(name=f"mamba2_{tokens}", init=row, draw=draw(tokens, 5120), production=True)


def cost(module: RMSNormGated, x: torch.Tensor, z: torch.Tensor) -> Cost:
    """Input and gate read once, output written once, the weight read once; about nine operations an element."""
    return Cost(bytes=2 * element_bytes(x) + element_bytes(z, module.weight), flops=9 * x.numel())


TASK = Task(
    name="rms_norm_gated",
    level=1,
    family="norm",
    interface=RMSNormGated,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(OtherOrder, ForgetsTheActivation, NoEps),
)
