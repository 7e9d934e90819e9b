"""No thread and no process: a timer's signal handler does the norm later, in the main thread."""

import signal

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("LATE_WORK", "TIMED_WRONG", "WRONG_OUTPUT", "TAMPERED", "NONDETERMINISTIC")
pending = []


def later(*_):
    while pending:
        x, out, weight, eps = pending.pop()
        out.copy_(F.rms_norm(x, x.shape[-1:], weight, eps))


signal.signal(signal.SIGALRM, later)


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        out = torch.empty_like(x)
        pending.append((total, out, self.weight, self.eps))
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        return out if residual is None else (out, total)
