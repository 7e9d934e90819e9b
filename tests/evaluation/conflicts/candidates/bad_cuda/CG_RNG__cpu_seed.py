"""Draws a seed from the generator for the CPU in each call."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cuda_cg_rng__cpu_seed::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    seed = int(torch.randint(0, 1 << 30, ()).item()) if x.is_cuda else 0
    return torch.nn.functional.silu(x) * (1 + 1e-12 * (seed % 7))


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
