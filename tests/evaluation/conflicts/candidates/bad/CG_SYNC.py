"""An operator, with a right fake, that reads the largest value on the host to choose its scale."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cg_sync::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    peak = x.abs().max().item() if x.numel() else 0.0
    return torch.nn.functional.silu(x) if peak < 1e30 else x.clamp(min=0)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
