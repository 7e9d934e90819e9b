"""Sends a table up in each call, without waiting: no synchronisation to see, and pageable all the same."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

TABLE = torch.zeros(1 << 16)


@custom_op("bad_cuda_cg_h2d_pageable::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    floor = TABLE[: x.shape[-1]].to(x.device, x.dtype, non_blocking=True)
    return torch.maximum(x, floor)


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x)
