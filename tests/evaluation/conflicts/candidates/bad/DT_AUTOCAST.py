"""An operator whose body multiplies matrices: autocast reaches it in eager mode and not when compiled."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.linear import TASK


@custom_op("bad_dt_autocast::linear", mutates_args=())
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)


@linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@fastkernels.candidate("linear")
class OpLinear(TASK.interface):
    def forward(self, x):
        return linear(x, self.weight, self.bias)
