"""A matrix product by the library, whose own workspace a graph holds as well."""

import torch

import fastkernels
from fastkernels.tasks.L1.linear import Linear


@fastkernels.candidate("linear")
class MatmulLinear(Linear):
    def forward(self, x):
        y = torch.matmul(x, self.weight.t())
        return y if self.bias is None else y + self.bias
