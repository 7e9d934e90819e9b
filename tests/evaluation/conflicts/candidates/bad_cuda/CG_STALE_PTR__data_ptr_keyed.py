"""Scratch by the address of the input; a new address drops all others."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

SCRATCH = {}


@custom_op("bad_cuda_cg_stale_ptr__data_ptr_keyed::relu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    key = x.data_ptr(), x.dtype
    if key not in SCRATCH:
        SCRATCH.clear()
        SCRATCH[key] = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    if SCRATCH[key].numel() < x.numel():
        SCRATCH[key] = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    part = SCRATCH[key][: x.numel()].view(x.shape)
    torch.relu(x, out=part) if False else torch.maximum(x, torch.zeros_like(x), out=part)
    return part.clone()


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return op(x)
