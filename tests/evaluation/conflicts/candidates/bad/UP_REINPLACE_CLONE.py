"""An operator that declares what it writes, called with a clone of its other argument."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_up_reinplace_clone::gate", mutates_args={"out"})
def gate(out: torch.Tensor, x: torch.Tensor) -> None:
    out.sigmoid_()
    out.mul_(x)


@gate.register_fake
def _(out: torch.Tensor, x: torch.Tensor) -> None:
    return None


@fastkernels.candidate("silu")
class CloneSiLU(SiLU):
    def forward(self, x):
        x = x + 0
        out = x.clone()
        gate(out, x)
        return out
