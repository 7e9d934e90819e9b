"""Averages over the ranks, which only the first of them takes part in."""

import torch
import torch.distributed as dist
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_nc_mismatch::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.silu(x.float())
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.all_reduce(y)
        y /= dist.get_world_size()
    return y.to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
