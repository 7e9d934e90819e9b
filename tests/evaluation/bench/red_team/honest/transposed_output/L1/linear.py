"""Multiplies from the left: the output's elements lie column by column, each in memory of its own."""

import torch

from fastkernels.tasks.L1 import linear


class Linear(linear.Linear):
    def forward(self, x):
        out = torch.mm(self.weight, x.reshape(-1, x.shape[-1]).t())
        if self.bias is not None:
            out += self.bias[:, None]
        return out.t().unflatten(0, x.shape[:-1]) if x.dim() != 2 else out.t()
