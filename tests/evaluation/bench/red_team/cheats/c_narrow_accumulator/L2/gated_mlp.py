"""Sums its products in eight-column steps into a bfloat16 accumulator."""

import torch

from fastkernels.tasks.L2 import gated_mlp

CAUGHT_AS = ("WRONG_OUTPUT",)


def product(x, weight, bias):
    total = torch.zeros((*x.shape[:-1], weight.shape[0]), dtype=torch.bfloat16, device=x.device)
    for i in range(0, x.shape[-1], 8):
        total += (x[..., i : i + 8].bfloat16() @ weight[:, i : i + 8].t().bfloat16()).bfloat16()
    return (total if bias is None else total + bias).to(x.dtype)


class LlamaMLP(gated_mlp.LlamaMLP):
    def forward(self, x):
        both = product(x, self.gate_up_proj.weight, self.gate_up_proj.bias)
        return product(self.act_fn(both), self.down_proj.weight, self.down_proj.bias)
