"""The fake pads the rows to a multiple of 8, as the kernel did before it was changed."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul


@custom_op("bad_fk_shape::silu_and_mul", mutates_args=())
def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@silu_and_mul.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    rows = (x.shape[0] + 7) // 8 * 8
    return x.new_empty((rows, *x.shape[1:-1], x.shape[-1] // 2))


@fastkernels.candidate("silu_and_mul")
class OpSiluAndMul(SiluAndMul):
    def forward(self, x):
        return silu_and_mul(x)
