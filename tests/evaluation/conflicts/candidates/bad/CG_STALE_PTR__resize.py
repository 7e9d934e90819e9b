"""One tensor of scratch that is resized in place: the same tensor, elsewhere."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

SCRATCH = {}


@custom_op("bad_cg_stale_ptr__resize::relu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    key = x.dtype, x.device
    if key not in SCRATCH:
        with torch.inference_mode(False):
            SCRATCH[key] = torch.empty(0, dtype=x.dtype, device=x.device)
    scratch = SCRATCH[key]
    if scratch.numel() < x.numel():
        scratch.resize_(x.numel())
    part = scratch[: x.numel()].view(x.shape)
    part.copy_(x)
    return part.clamp(min=0)


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return op(x)
