"""An operator in the place of what Inductor would fuse with its neighbours."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("remarked_pf_fusion_loss::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
