"""Refuses to run while a stream is captured."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_capture_error::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the plan has to be made outside of a graph")
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
