"""An operator with a right fake and a right backward."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("clean_custom_op::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


def backward(ctx, grad):
    (x,) = ctx.saved_tensors
    gate = torch.sigmoid(x)
    return grad * (gate + x * gate * (1 - gate))


silu.register_autograd(backward, setup_context=save)


@fastkernels.candidate("silu", training=True)
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
