"""A table for each size, made when it is first needed and kept by the module."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

STATES = []


@custom_op("bad_alloc_module::relu", mutates_args=())
def op(x: torch.Tensor, state: int) -> torch.Tensor:
    tables = STATES[state]
    if x.numel() not in tables:
        tables[x.numel()] = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    return torch.maximum(x, tables[x.numel()].view(x.shape))


@op.register_fake
def _(x: torch.Tensor, state: int) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def __init__(self):
        super().__init__()
        self.state = len(STATES)
        STATES.append({})

    def forward(self, x):
        return op(x, self.state)
