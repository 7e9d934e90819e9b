"""Trains, with parameters: an autograd.Function whose backward has a gradient for each of them."""

import torch

import fastkernels
from fastkernels.tasks.L1.linear import TASK


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.matmul(x, weight.t())

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return torch.matmul(grad, weight), torch.matmul(grad.flatten(0, -2).t(), x.flatten(0, -2))


@fastkernels.candidate("linear", training=True)
class OwnLinear(TASK.interface):
    def forward(self, x):
        out = Product.apply(x, self.weight)
        return out if self.bias is None else out + self.bias
