"""One value written through a mask, inside an operator: a fill, for which no host waits."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@custom_op("clean_mask_fill::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    out[x < 0] = 0
    return out


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class FillReLU(ReLU):
    def forward(self, x):
        return relu(x)
