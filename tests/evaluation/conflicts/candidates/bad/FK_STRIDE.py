"""The kernel returns a column-major result, the fake promises rows."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.gelu import GELU


@custom_op("bad_fk_stride::gelu", mutates_args=())
def gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    columns = x.transpose(0, -1).contiguous()
    return torch.nn.functional.gelu(columns, approximate=approximate).transpose(0, -1)


@gelu.register_fake
def _(x: torch.Tensor, approximate: str) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("gelu")
class OpGelu(GELU):
    def forward(self, x):
        return gelu(x, self.approximate)
