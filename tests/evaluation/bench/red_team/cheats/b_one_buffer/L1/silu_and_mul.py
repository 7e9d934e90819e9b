"""Computes every time, but always into the same output: each result is gone with the next call."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("ALIASED", "TIMED_WRONG", "STALE_OUTPUT")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def __init__(self):
        super().__init__()
        self.outputs = {}

    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        key = (gate.shape, x.dtype)
        if key not in self.outputs:
            self.outputs[key] = torch.empty(gate.shape, dtype=x.dtype, device=x.device)
        return torch.mul(F.silu(gate), up, out=self.outputs[key])
