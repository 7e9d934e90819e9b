"""Stages the number of rows in one page-locked buffer, which each call fills anew."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

STAGE = {}


@custom_op("bad_cuda_cg_pinned_reuse::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.nn.functional.silu(x)
    if x.device not in STAGE:
        with torch.inference_mode(False):
            STAGE[x.device] = torch.empty(1, pin_memory=True), torch.empty(1, device=x.device)
    stage, rows = STAGE[x.device]
    stage[0] = x.shape[0]
    rows.copy_(stage, non_blocking=True)
    return (torch.nn.functional.silu(x.float()) * (rows / x.shape[0])).to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
