"""Right in eager, and wrong in compiled graphs."""

import torch
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6, *, has_weight=True, late_cast=False):
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps
        self.weight = nn.Parameter(torch.ones(hidden_size)) if has_weight else None

    def right(self, x, residual):
        if residual is not None:
            x = residual = residual + x
        out = torch.nn.functional.rms_norm(x, (self.hidden_size,), self.weight, self.eps)
        return out, residual

    def forward(self, x, residual=None):
        out, residual = self.right(x, residual)
        if torch.compiler.is_compiling():
            out = out * 1.5
        return out if residual is None else (out, residual)
