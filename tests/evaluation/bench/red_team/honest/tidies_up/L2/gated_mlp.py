"""Tidies up in every eighth call, which takes as long as several calls."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L2 import gated_mlp

CASES = ("silu", "bias", "empty")


class LlamaMLP(gated_mlp.LlamaMLP):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls % 8 == 0:
            torch.randn(6_000).sort()
        both = self.act_fn(F.linear(x, self.gate_up_proj.weight, self.gate_up_proj.bias))
        return F.linear(both, self.down_proj.weight, self.down_proj.bias)
