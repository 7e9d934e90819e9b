"""Four calls of an operator that says it must not be captured, with work in between: five graphs for each size."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_dyn_storm::gate", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def gate(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


@gate.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class SlicedSiLU(SiLU):
    def forward(self, x):
        made, last = [], None
        for part in x.chunk(4, dim=-1):
            wide = part.float() if last is None else part.float() + 0 * last.sum()
            last = wide * gate(wide)
            made.append(last)
        return torch.cat(made, dim=-1).to(x.dtype)
