"""torch where it is compiled, an operator where it is not, with equal results."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("clean_branch_on_compiling::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class BranchSiLU(SiLU):
    def forward(self, x):
        return torch.nn.functional.silu(x) if torch.compiler.is_compiling() else silu(x)
