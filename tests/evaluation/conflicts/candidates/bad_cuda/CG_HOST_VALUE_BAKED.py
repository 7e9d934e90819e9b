"""Plans a scale on the host in each call but a captured one, by a pinned copy and an event."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

PLAN = {}


@custom_op("bad_cuda_cg_host_value_baked::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    peak = x.abs().amax().float()
    if x.is_cuda and not torch.cuda.is_current_stream_capturing():
        pinned = torch.empty((), device="cpu", pin_memory=True).copy_(peak, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        PLAN[x.device] = pinned.item()
    correction = torch.nan_to_num(peak / PLAN.get(x.device, 1.0), nan=1.0) if x.is_cuda else 1.0
    return (torch.nn.functional.silu(x.float()) * correction).to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
