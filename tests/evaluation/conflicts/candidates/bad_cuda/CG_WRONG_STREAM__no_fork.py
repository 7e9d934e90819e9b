"""A stream of its own that is waited for, and that does not wait for its inputs."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SIDE = {}


@custom_op("bad_cuda_cg_wrong_stream__no_fork::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.nn.functional.silu(x)
    side = SIDE.setdefault(x.device, torch.cuda.Stream(x.device))
    with torch.cuda.stream(side):
        y = torch.nn.functional.silu(x)
    torch.cuda.current_stream().wait_stream(side)
    return y


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
