"""Adds a vector that it makes on the default device."""

import torch

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@fastkernels.candidate("relu")
class OffsetReLU(ReLU):
    def forward(self, x):
        return x.clamp(min=0) + torch.zeros(x.shape[-1]).to(x.dtype)
