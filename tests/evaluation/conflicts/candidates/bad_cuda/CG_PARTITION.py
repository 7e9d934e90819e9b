"""Works in scratch that is a global of the file: a graph's input that is written and may lie elsewhere next time."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

SCRATCH = torch.empty(1 << 20, device="cuda")


@custom_op("bad_cuda_cg_partition::relu", mutates_args={"scratch"})
def relu(x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    part = scratch[: x.numel()].view(x.shape)
    part.copy_(x)
    return part.clamp(min=0).to(x.dtype)


@relu.register_fake
def _(x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu", devices=("cuda",))
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x, SCRATCH)
