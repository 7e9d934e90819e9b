"""On a device, reads the largest value on the host to choose a branch."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_sync::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda and x.abs().amax().item() > 1e30:
        return x.clamp(min=0)
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
