"""Normalises by a statistic through which no gradient flows; the parameters' gradients are right."""

import torch

import fastkernels
from fastkernels.tasks.L1.rms_norm import RMSNorm


@fastkernels.candidate("rms_norm", training=True)
class DetachedNorm(RMSNorm):
    def forward(self, x, residual=None):
        if residual is not None:
            x = residual = residual + x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        out = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).detach() + self.eps)
        if self.weight is not None:
            out = out * self.weight if self.late_cast else out.to(x.dtype) * self.weight
        return out.to(x.dtype) if residual is None else (out.to(x.dtype), residual)
