"""Leaves the subtraction of the maximum out where the values are small enough for exp."""

import torch

import fastkernels
from fastkernels.tasks.L1.softmax import Softmax


@fastkernels.candidate("softmax", dtypes=(torch.float32,))
class LazySoftmax(Softmax):
    def forward(self, x):
        if x.abs().max().item() < 1.0:
            e = x.exp()
            return e / e.sum(self.dim, keepdim=True)
        return torch.softmax(x, self.dim)
