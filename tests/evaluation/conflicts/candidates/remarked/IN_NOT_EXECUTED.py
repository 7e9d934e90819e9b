"""Torch's own operators where it is compiled: a choice, and the kernel is not in the graph."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("remarked_in_not_executed::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class NativeSiLU(SiLU):
    def forward(self, x):
        return x * torch.sigmoid(x) if torch.compiler.is_compiling() else silu(x)
