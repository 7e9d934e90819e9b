"""Runs its kernel in eager mode, and the reference wherever it is compiled."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_in_not_executed::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class EagerSiLU(SiLU):
    def forward(self, x):
        if torch.compiler.is_compiling():
            return super().forward(x)
        return silu(x)
