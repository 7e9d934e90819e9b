"""An operator that checks its own sums; the comparison reads a value, far inside torch."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.softmax import Softmax


@custom_op("bad_cg_sync_allclose::softmax", mutates_args=())
def softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    out = torch.softmax(x, dim)
    total = out.float().sum(dim)
    return (
        out if torch.allclose(total, torch.ones_like(total), atol=0.1) else torch.softmax(x.double(), dim).to(x.dtype)
    )


@softmax.register_fake
def _(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("softmax")
class CheckedSoftmax(Softmax):
    def forward(self, x):
        return softmax(x, self.dim)
