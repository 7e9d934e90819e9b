"""Makes a group of its own in each call, whose communicator is then new, in a capture as well."""

import torch
import torch.distributed as dist
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_nccl_capture::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.silu(x.float())
    if dist.is_initialized():
        dist.all_reduce(y, group=dist.new_group())
        y /= dist.get_world_size()
    return y.to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
