"""Reads the scale of the last call by polling, except in a capture."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

LAST = {}


@custom_op("bad_cuda_cg_host_value_baked__capture_branch::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.nn.functional.silu(x)
    peak = x.float().abs().amax()
    if not torch.cuda.is_current_stream_capturing():
        done = torch.cuda.Event()
        stage = torch.empty(1, pin_memory=True)
        stage.copy_(peak.reshape(1), non_blocking=True)
        done.record()
        while not done.query():
            pass
        LAST[x.device] = float(stage[0])
    scale = max(LAST.get(x.device, 1.0), 1e-6)
    return (torch.nn.functional.silu(x.float()) / scale * torch.clamp(peak, min=1e-6)).to(x.dtype)


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
