"""One formula for decoding and another for prefill."""

import torch

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@fastkernels.candidate("silu")
class TwoPathSiLU(SiLU):
    def forward(self, x):
        if x.shape[0] <= 16:
            return torch.nn.functional.silu(x)
        return super().forward(x)
