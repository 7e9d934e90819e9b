"""Copies contiguous rows into a column-major buffer, inside an operator, and the result back."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_pf_hidden_copy_into_columns::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    columns = x.new_empty(x.shape[::-1]).permute(*reversed(range(x.dim())))
    columns.copy_(x)
    return torch.nn.functional.silu(columns).contiguous()


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


@fastkernels.candidate("silu")
class ColumnSiLU(SiLU):
    def forward(self, x):
        return silu(x)
