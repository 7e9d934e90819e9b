"""Takes a statistic on a side stream that waits for the current one, and that nobody waits for."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SIDE = {}


@custom_op("bad_cuda_cg_unjoined_stream::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        side = SIDE.setdefault(x.device, torch.cuda.Stream(x.device))
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.abs().amax()
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
