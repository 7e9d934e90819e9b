"""Waits for the whole device, to be sure."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cg_sync__device_synchronize::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.silu(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return y


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
