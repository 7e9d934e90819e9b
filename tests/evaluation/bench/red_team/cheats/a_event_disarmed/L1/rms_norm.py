"""Records every CUDA event on an idle stream, so that event times read nothing."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import rms_norm

GPU = True
CAUGHT_AS = ("TAMPERED", "CLOCK_MISMATCH")

real = torch.cuda.Event.record
idle = []


def record(self, stream=None):
    if not idle:
        idle.append(torch.cuda.Stream())
    return real(self, idle[0])


torch.cuda.Event.record = record


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        out = F.rms_norm(total, (self.hidden_size,), self.weight, self.eps)
        return out if residual is None else (out, total)
