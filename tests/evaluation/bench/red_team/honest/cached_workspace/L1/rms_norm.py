"""Squares go into a workspace kept from call to call; outputs are new each time."""

import torch

from fastkernels.tasks.L1 import rms_norm

workspaces = {}


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        wide = torch.promote_types(x.dtype, torch.float32)
        key = (total.shape, wide, x.device)
        if key not in workspaces:
            workspaces[key] = torch.empty(total.shape, dtype=wide, device=x.device)
        square = workspaces[key]
        torch.mul(total, total, out=square) if total.dtype == wide else square.copy_(total).square_()
        normed = total.to(wide) * torch.rsqrt(square.mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            out = normed.to(x.dtype)
        elif self.late_cast:
            out = (normed * self.weight.to(wide)).to(x.dtype)
        else:
            out = normed.to(x.dtype) * self.weight
        return out if residual is None else (out, total)
