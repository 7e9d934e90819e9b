"""Makes a table for each new shape and keeps it, also when a graph is being captured."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

FLOORS = {}


@custom_op("bad_cuda_cg_alloc_in_pool::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    key = x.shape, x.dtype, x.device
    if key not in FLOORS:
        FLOORS[key] = torch.zeros_like(x)
    return torch.maximum(x, FLOORS[key])


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x)
