"""Clears its accumulator from the host side of the call, and leaves that out while a graph is captured."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

LARGEST = 1 << 20  # elements
SUMS = {}


@custom_op("bad_cuda_cg_replay::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    key = x.dtype, x.device
    if key not in SUMS:
        with torch.inference_mode(False):
            SUMS[key] = torch.empty(LARGEST, dtype=x.dtype, device=x.device)
    total = SUMS[key][: x.numel()].view(x.shape)
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        total.zero_()
    total.add_(torch.relu(x))
    return total.clone()


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x)
