"""Packs the weight when it is constructed, before a checkpoint is loaded."""

import torch

import fastkernels
from fastkernels.tasks.L1.linear import TASK


@fastkernels.candidate("linear")
class EagerlyPackedLinear(TASK.interface):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packed = self.weight.detach().t().contiguous()

    def forward(self, x):
        out = torch.matmul(x, self.packed.to(x.dtype))
        return out if self.bias is None else out + self.bias
