"""Writes into one output buffer that it keeps for each shape."""

import torch

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@fastkernels.candidate("silu")
class BufferedSiLU(SiLU):
    def __init__(self):
        super().__init__()
        self.outputs = {}

    def forward(self, x):
        key = (x.shape, x.dtype)
        if key not in self.outputs:
            self.outputs[key] = torch.empty_like(x)
        return self.outputs[key].copy_(super().forward(x))
