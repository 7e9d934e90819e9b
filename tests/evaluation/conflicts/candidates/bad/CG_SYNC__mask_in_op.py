"""Gathers and writes through a mask: the kernel has to ask how many elements it holds."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@custom_op("bad_cg_sync_mask::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    positive = x > 0
    out[positive] = x[positive]
    return out


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class MaskedReLU(ReLU):
    def forward(self, x):
        return relu(x)
