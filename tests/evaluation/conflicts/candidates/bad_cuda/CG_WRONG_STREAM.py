"""Launches on the default stream, whatever the current one is."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_wrong_stream::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.nn.functional.silu(x)
    with torch.cuda.stream(torch.cuda.default_stream(x.device)):
        return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
