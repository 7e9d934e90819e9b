"""gated_mlp: gate and up projections, activation, product, down projection (Shazeer 2020, "GLU variants")."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


class LlamaMLP(Interface):
    """Constructor, ``forward`` and state as vLLM's ``LlamaMLP``.

    Args:
        hidden_size: width of input and output.
        intermediate_size: width of each of gate and up.
        hidden_act: ``silu``, ``gelu`` (erf) or ``gelu_tanh``.
        bias: biases on all three projections.

    ``forward(x)``: (..., hidden_size) to the same shape and dtype. State: ``gate_up_proj.weight``
    (2 * intermediate_size, hidden_size), gate rows first, and ``down_proj.weight``.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str = "silu", *, bias: bool = False
    ) -> None:
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"gated_mlp: hidden_act {hidden_act!r} is not one of {ACTIVATIONS}")
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)
        self.act_fn: nn.Module = (
            SiluAndMul() if hidden_act == "silu" else GeluAndMul("none" if hidden_act == "gelu" else "tanh")
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))


class Witness(LlamaMLP):
    """Gate and up as two products instead of one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_weight, up_weight = self.gate_up_proj.weight.chunk(2)
        biases = (None, None) if self.gate_up_proj.bias is None else self.gate_up_proj.bias.chunk(2)
        both = torch.cat((F.linear(x, gate_weight, biases[0]), F.linear(x, up_weight, biases[1])), dim=-1)
        return self.down_proj(self.act_fn(both))


class SwapsGateAndUp(LlamaMLP):
    """Cheat: activates the wrong half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(torch.cat((up, gate), dim=-1)))


class DropsTheTail(LlamaMLP):
    """Cheat: leaves out the last sixteenth of the intermediate width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act_fn(self.gate_up_proj(x))
        keep = h.shape[-1] - h.shape[-1] // 16 - 1
        return F.linear(h[..., :keep], self.down_proj.weight[:, :keep], self.down_proj.bias)


def cases() -> Iterator[Case]:
    """Each activation, with and without bias, odd widths, no rows, one row; Llama-3.1-8B's sizes."""

    def draw(rows: tuple[int, ...], width: int) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return (torch.randn(*rows, width, generator=g).to(device, dtype),)

        return arguments

    for act in ACTIVATIONS:
        init = {"hidden_size": 32, "intermediate_size": 88, "hidden_act": act}
        yield Case(name=act, init=init, draw=draw((2, 5), 32))
    yield Case(name="bias", init={"hidden_size": 24, "intermediate_size": 56, "bias": True}, draw=draw((7,), 24))
    yield Case(name="odd", init={"hidden_size": 23, "intermediate_size": 61}, draw=draw((1,), 23))
    yield Case(name="empty", init={"hidden_size": 16, "intermediate_size": 32}, draw=draw((0,), 16))
    for rows in (1, 64, 2048):
        llama = {"hidden_size": 4096, "intermediate_size": 14336}
        yield Case(name=f"llama_{rows}", init=llama, draw=draw((rows,), 4096), production=True)


def cost(module: LlamaMLP, x: torch.Tensor) -> Cost:
    """Weights, input and output cross memory once; the intermediate need not."""
    weights = list(module.parameters())
    rows = x.numel() // x.shape[-1]
    matrices = sum(w.numel() for w in weights if w.dim() == 2)
    return Cost(bytes=element_bytes(x, x, *weights), flops=2 * rows * matrices)


TASK = Task(
    name="gated_mlp",
    level=2,
    family="mlp",
    interface=LlamaMLP,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SwapsGateAndUp, DropsTheTail),
    accuracy=CONTRACTION,
    stems=("llama_mlp",),
    parts=("linear", "silu_and_mul", "gelu_and_mul"),
)
