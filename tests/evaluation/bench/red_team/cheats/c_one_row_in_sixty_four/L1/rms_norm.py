"""Leaves every 64th row as it came: under 2% of the elements."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("WRONG_OUTPUT", "TIMED_WRONG")


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        out = F.rms_norm(total, (self.hidden_size,), self.weight, self.eps)
        rows = out.view(-1, self.hidden_size)
        rows[15::64] = total.reshape(-1, self.hidden_size)[15::64]
        return out if residual is None else (out, total)
