"""linear: the matrix product with optional bias that holds most of a model's work.

Tensor in, tensor out: production's ``(output, bias)`` pairs are the adapters' business."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class Linear(Interface):
    """``x @ weight.T + bias``, constructor as vLLM's ``ReplicatedLinear``.

    Args:
        input_size, output_size: widths of the last axis before and after.
        bias: whether there is a bias.

    ``forward(x)``: (..., input_size) to (..., output_size) in the same dtype. State: ``weight`` (output_size,
    input_size) and ``bias`` (output_size,), both uninitialised.
    """

    def __init__(self, input_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size))
        self.bias = nn.Parameter(torch.empty(output_size)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class Witness(Linear):
    """A contraction in float32 by einsum, rounded once at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = compute_dtype(x)
        out = torch.einsum("...i,oi->...o", x.to(wide), self.weight.to(wide))
        return (out if self.bias is None else out + self.bias.to(wide)).to(x.dtype)


class ForgetsTheBias(Linear):
    """Cheat: a product only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class HalfPrecision(Linear):
    """Cheat: multiplies in bfloat16 whatever was asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        return F.linear(x.bfloat16(), self.weight.bfloat16(), bias).to(x.dtype)


class DropsTheTail(Linear):
    """Cheat: sums whole blocks of 16 inputs only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.input_size // 16 * 16
        return F.linear(x[..., :whole], self.weight[:, :whole], self.bias)


def cases() -> Iterator[Case]:
    """One row to many, odd widths, a strided input; then Llama-3.1-8B's projections and its head."""

    def draw(*shape: int, scale: float = 1.0, strided: bool = False) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            x = (torch.randn(*shape[:-1], shape[-1] * (1 + strided), generator=g) * scale).to(device, dtype)
            return (x[..., :: 1 + strided],)

        return arguments

    for name, (shape, width) in {
        "rows": ((3, 64), 48),
        "one_row": ((1, 64), 64),
        "batch": ((2, 5, 32), 96),
        "odd": ((7, 77), 13),
        "one_output": ((4, 33), 1),
        "empty": ((0, 64), 32),
    }.items():
        for bias in (True, False):
            init = {"input_size": shape[-1], "output_size": width, "bias": bias}
            yield Case(name=name if bias else f"{name}_no_bias", init=init, draw=draw(*shape))
    init = {"input_size": 64, "output_size": 48}
    yield Case(name="strided", init=init, draw=draw(5, 64, strided=True))
    yield Case(name="large_values", init=init, draw=draw(5, 64, scale=1e4))
    for rows in (1, 64, 2048, 8192):
        for name, (width_in, width_out) in {
            "qkv": (4096, 6144),
            "gate_up": (4096, 28672),
            "down": (14336, 4096),
        }.items():
            init = {"input_size": width_in, "output_size": width_out, "bias": False}
            yield Case(name=f"llama_{name}_{rows}", init=init, draw=draw(rows, width_in), production=True)
    head = {"input_size": 4096, "output_size": 128256, "bias": False}
    yield Case(name="llama_head_1", init=head, draw=draw(1, 4096), production=True)


def cost(module: Linear, x: torch.Tensor) -> Cost:
    """Input, weight and bias read once, output written once; a multiply and an add for each weight and row."""
    rows = x.numel() // module.input_size
    written = rows * module.output_size * x.element_size()
    return Cost(
        bytes=element_bytes(x, module.weight, module.bias) + written,
        flops=2 * rows * module.input_size * module.output_size,
    )


TASK = Task(
    name="linear",
    level=1,
    family="gemm",
    interface=Linear,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(ForgetsTheBias, HalfPrecision, DropsTheTail),
    accuracy=CONTRACTION,
)
