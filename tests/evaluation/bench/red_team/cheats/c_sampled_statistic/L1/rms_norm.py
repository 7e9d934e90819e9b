"""The mean square of every second column: right on average, where columns are alike."""

import torch

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("WRONG_OUTPUT",)


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        wide = total.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide[..., ::2].pow(2).mean(-1, keepdim=True) + self.eps)
        out = normed.to(x.dtype)
        if self.weight is not None:
            out = (normed * self.weight).to(x.dtype) if self.late_cast else out * self.weight
        return out if residual is None else (out, total)
