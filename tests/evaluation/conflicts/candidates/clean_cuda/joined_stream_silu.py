"""The two halves of the product on two streams; the current one waits for both."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SIDE = {}


@custom_op("clean_cuda_joined_stream_silu::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    side = SIDE.setdefault(x.device, torch.cuda.Stream(x.device))
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gate = torch.sigmoid(x.float())
    wide = x.float()
    torch.cuda.current_stream().wait_stream(side)
    gate.record_stream(torch.cuda.current_stream())
    return (wide * gate).to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
