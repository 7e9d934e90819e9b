"""An operator that makes its lower bound on the host and moves it, out of every compiler's sight."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@custom_op("bad_cg_h2d_in_op::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    floor = torch.zeros(x.shape[-1], device="cpu").to(x.device, x.dtype)
    return torch.maximum(x, floor)


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class FloorReLU(ReLU):
    def forward(self, x):
        return relu(x)
