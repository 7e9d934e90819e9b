"""Whole blocks of 16 rows only; rows beyond them, and all of fewer than 16, come back as torch gave the memory."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("WRONG_OUTPUT",)


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        rows = total.reshape(-1, self.hidden_size)
        out = torch.empty_like(rows)
        whole = len(rows) if len(rows) < 16 else len(rows) // 16 * 16
        out[:whole] = F.rms_norm(rows[:whole], (self.hidden_size,), self.weight, self.eps)
        out = out.view(x.shape)
        return out if residual is None else (out, total)
