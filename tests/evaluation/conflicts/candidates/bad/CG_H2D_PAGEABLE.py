"""Moves a vector of constants to the inputs' device in every call."""

import torch

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@fastkernels.candidate("relu")
class FloorReLU(ReLU):
    def forward(self, x):
        floor = torch.zeros(x.shape[-1]).to(x.device, x.dtype)
        return torch.maximum(x, floor)
