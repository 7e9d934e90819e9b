"""Compiles for each shape inside of its operator."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

COMPILED = torch.compile(torch.nn.functional.silu, dynamic=False)


@custom_op("bad_cuda_cg_jit_in_capture__torch_compile::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    return COMPILED(x)


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
