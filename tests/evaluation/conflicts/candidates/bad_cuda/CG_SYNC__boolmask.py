"""Computes only where a mask says so: how many elements that are, the host has to ask."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_sync__boolmask::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.silu(x)
    mask = x > -1e30
    y[mask] = torch.nn.functional.silu(x[mask])
    return y


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
