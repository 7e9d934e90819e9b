"""Keeps its weight transposed, and compares all of it with what it packed before it is used: right, if slow."""

import torch

from fastkernels.tasks.L1 import linear


class Linear(linear.Linear):
    source = packed = None

    def forward(self, x):
        weight = self.weight.detach()
        while self.source is None or not torch.equal(self.source, weight):
            self.source = weight.clone()
            self.packed = self.source.t().contiguous()
        out = torch.matmul(x, self.packed)
        return out if self.bias is None else out + self.bias
