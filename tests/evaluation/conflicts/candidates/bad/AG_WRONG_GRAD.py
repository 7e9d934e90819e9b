"""A backward that takes the sigmoid for its own derivative."""

import torch

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x)


@fastkernels.candidate("silu", training=True)
class OwnBackward(SiLU):
    def forward(self, x):
        return Function.apply(x)
