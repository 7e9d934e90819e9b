"""Draws a seed from numpy in each call."""

import numpy
import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cg_rng__numpy::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    seed = numpy.random.randint(0, 1 << 30)
    return torch.nn.functional.silu(x) * (1 + 1e-12 * (seed % 7))


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
