"""Launches on a stream of its own and waits for nothing: eager calls race as well."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SIDE = {}


@custom_op("bad_cg_wrong_stream__own_stream::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.nn.functional.silu(x)
    side = SIDE.setdefault(x.device, torch.cuda.Stream(x.device))
    with torch.cuda.stream(side):
        return torch.nn.functional.silu(x)


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
