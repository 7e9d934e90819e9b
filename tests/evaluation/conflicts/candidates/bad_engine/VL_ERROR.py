"""From 16 rows on the kernel writes columns; its fake says so, by the number of rows, and vLLM drops that guard."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

TILE = 16  # rows


def outputs(x):
    if x.shape[0] < TILE:
        return torch.empty_like(x)
    return x.new_empty(x.transpose(0, -1).shape).transpose(0, -1)


@custom_op("bad_vl_error::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp_min(x, 0, out=outputs(x))


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return outputs(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x)
