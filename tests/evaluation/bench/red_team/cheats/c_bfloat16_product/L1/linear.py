"""Multiplies in bfloat16 what was asked for in float32."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("WRONG_OUTPUT",)


class Linear(linear.Linear):
    def forward(self, x):
        bias = None if self.bias is None else self.bias.bfloat16()
        return F.linear(x.bfloat16(), self.weight.bfloat16(), bias).to(x.dtype)
