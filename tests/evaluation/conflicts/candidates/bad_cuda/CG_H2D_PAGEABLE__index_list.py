"""Picks columns by a list of Python, which travels up in each call."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@custom_op("bad_cuda_cg_h2d_pageable__index_list::relu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)[..., list(range(x.shape[-1]))].contiguous()


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return op(x)
