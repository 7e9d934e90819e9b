"""An operator whose body multiplies by a vector that it makes on the default device."""

import torch

import fastkernels
from fastkernels.tasks.L1.gelu import GELU


def gelu(x, approximate):
    ones = torch.ones(x.shape[-1])
    return (torch.nn.functional.gelu(x, approximate=approximate) * ones).to(x.dtype)


library = torch.library.Library("bad_cg_cpu_tensor_in_op", "DEF")
library.define("gelu(Tensor x, str approximate) -> Tensor")
library.impl("gelu", gelu, "CompositeExplicitAutograd")
torch.library.register_fake("bad_cg_cpu_tensor_in_op::gelu", lambda x, approximate: torch.empty_like(x))


@fastkernels.candidate("gelu")
class ScaledGelu(GELU):
    def forward(self, x):
        return torch.ops.bad_cg_cpu_tensor_in_op.gelu(x, self.approximate)
