"""An operator with one scratch buffer for everything, which grows with the batch."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SCRATCH = {}


@custom_op("bad_cg_stale_ptr::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    scratch = SCRATCH.get(x.dtype)
    if scratch is None or scratch.numel() < x.numel():
        scratch = SCRATCH[x.dtype] = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    part = scratch[: x.numel()].view(x.shape)
    torch.sigmoid(x, out=part)
    return torch.nn.functional.silu(x) + 0 * part


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class ScratchSiLU(SiLU):
    def forward(self, x):
        return silu(x)
