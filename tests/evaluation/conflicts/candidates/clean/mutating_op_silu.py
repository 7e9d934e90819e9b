"""An operator that writes into an output it is given, and declares it."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul


@custom_op("clean_mutating_op::silu_and_mul", mutates_args={"out"})
def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    gate, up = x.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate.to(torch.promote_types(x.dtype, torch.float32))) * up)


@silu_and_mul.register_fake
def _(out: torch.Tensor, x: torch.Tensor) -> None:
    return None


@fastkernels.candidate("silu_and_mul")
class OutSiluAndMul(SiluAndMul):
    def forward(self, x):
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        silu_and_mul(out, x)
        return out
