"""An operator registered with torch, as candidates for compiled models have."""

import torch
from torch.library import custom_op

from fastkernels.tasks.L1 import softmax


@custom_op("red_team_honest::softmax", mutates_args=())
def fused_softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0:
        return torch.empty_like(x)
    powers = (wide - wide.amax(dim, keepdim=True)).exp_()
    return powers.div_(powers.sum(dim, keepdim=True)).to(x.dtype)


class Softmax(softmax.Softmax):
    def forward(self, x):
        return fused_softmax(x, self.dim)
