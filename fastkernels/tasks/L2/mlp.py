"""mlp: two projections with an activation between them, the feed-forward of encoders and of GPT-2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1.gelu import GELU
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.quick_gelu import QuickGELU
from fastkernels.tasks.L1.relu import ReLU
from fastkernels.tasks.L1.silu import SiLU
from fastkernels.tasks.L1.squared_relu import ReLUSquaredActivation
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

ACTIVATIONS: Mapping[str, Callable[[], Interface]] = {
    "gelu": lambda: GELU(),
    "gelu_tanh": lambda: GELU("tanh"),
    "quick_gelu": QuickGELU,
    "relu": ReLU,
    "silu": SiLU,
    "squared_relu": ReLUSquaredActivation,
}


class MLP(Interface):
    """State names as CLIP's and ViT's MLP.

    Args:
        hidden_size: width of input and output.
        intermediate_size: width between the projections.
        hidden_act: one of ``ACTIVATIONS``; ``gelu`` is the one by the error function.
        bias: biases on both projections.

    ``forward(x)``: (..., hidden_size) to the same shape and dtype. State: ``fc1.weight`` (intermediate_size,
    hidden_size), ``fc2.weight`` (hidden_size, intermediate_size) and their biases.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str = "gelu", *, bias: bool = True
    ) -> None:
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"mlp: hidden_act {hidden_act!r} is not one of {tuple(ACTIVATIONS)}")
        self.fc1 = Linear(hidden_size, intermediate_size, bias=bias)
        self.act = ACTIVATIONS[hidden_act]()
        self.fc2 = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Witness(MLP):
    """The intermediate width in two halves, whose products are added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        biases = (None, None) if self.fc1.bias is None else self.fc1.bias.tensor_split(2)
        ups, downs = self.fc1.weight.tensor_split(2), self.fc2.weight.tensor_split(2, dim=1)
        wide = compute_dtype(x)
        out = sum(
            F.linear(self.act(F.linear(x, up, bias)).to(wide), down.to(wide))
            for up, bias, down in zip(ups, biases, downs, strict=True)
        )
        return (out if self.fc2.bias is None else out + self.fc2.bias.to(wide)).to(x.dtype)


class TakesAnotherActivation(MLP):
    """Cheat: SiLU for every activation but itself, and the quick GELU for that."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str = "gelu", *, bias: bool = True
    ) -> None:
        super().__init__(hidden_size, intermediate_size, hidden_act, bias=bias)
        self.act = QuickGELU() if hidden_act == "silu" else SiLU()


class ForgetsTheBias(MLP):
    """Cheat: leaves out the bias of the first projection."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(F.linear(x, self.fc1.weight)))


class DropsTheTail(MLP):
    """Cheat: leaves out the last sixteenth of the intermediate width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.fc1(x))
        keep = h.shape[-1] - h.shape[-1] // 16 - 1
        return F.linear(h[..., :keep], self.fc2.weight[:, :keep], self.fc2.bias)


def cases() -> Iterator[Case]:
    """Each activation, no bias, odd widths, no rows, one row; BERT-base's and GPT-2 XL's sizes."""

    def draw(rows: tuple[int, ...], width: int) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return (torch.randn(*rows, width, generator=g).to(device, dtype),)

        return arguments

    for act in ACTIVATIONS:
        init = {"hidden_size": 32, "intermediate_size": 88, "hidden_act": act}
        yield Case(name=act, init=init, draw=draw((2, 5), 32))
    yield Case(name="no_bias", init={"hidden_size": 24, "intermediate_size": 56, "bias": False}, draw=draw((7,), 24))
    yield Case(name="odd", init={"hidden_size": 23, "intermediate_size": 61}, draw=draw((1,), 23))
    yield Case(name="empty", init={"hidden_size": 16, "intermediate_size": 32}, draw=draw((0,), 16))
    for rows in (512, 16384):
        bert = {"hidden_size": 768, "intermediate_size": 3072}
        yield Case(name=f"bert_base_{rows}", init=bert, draw=draw((rows,), 768), production=True)
    gpt2 = {"hidden_size": 1600, "intermediate_size": 6400, "hidden_act": "gelu_tanh"}
    yield Case(name="gpt2_xl_1", init=gpt2, draw=draw((1,), 1600), production=True)


def cost(module: nn.Module, x: torch.Tensor) -> Cost:
    """Weights, input and output cross memory once; the intermediate need not."""
    weights = list(module.parameters())
    rows = x.numel() // x.shape[-1]
    matrices = sum(w.numel() for w in weights if w.dim() == 2)
    return Cost(bytes=element_bytes(x, x, *weights), flops=2 * rows * matrices)


TASK = Task(
    name="mlp",
    level=2,
    family="mlp",
    interface=MLP,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(TakesAnotherActivation, ForgetsTheBias, DropsTheTail),
    accuracy=CONTRACTION,
    stems=("encoder_mlp", "vision_mlp"),
    parts=("linear", "gelu", "quick_gelu", "relu", "silu", "squared_relu"),
)
