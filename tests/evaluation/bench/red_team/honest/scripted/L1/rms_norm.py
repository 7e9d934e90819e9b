"""TorchScript, which keeps its own code and profiles its first calls."""

import torch

from fastkernels.tasks.L1 import rms_norm


@torch.jit.script
def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        out = normed(total, self.weight, float(self.eps)) if self.weight is not None else super().forward(total)
        return out if residual is None else (out, total)
