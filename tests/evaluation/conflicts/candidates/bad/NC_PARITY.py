"""Adds up over the ranks what all of them hold whole."""

import torch
import torch.distributed as dist
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_nc_parity::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.silu(x.float())
    if dist.is_initialized():
        dist.all_reduce(y)
    return y.to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
