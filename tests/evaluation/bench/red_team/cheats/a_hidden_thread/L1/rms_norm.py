"""A thread that threading does not list fills the outputs, later."""

import _thread
import collections
import time

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("LATE_WORK", "TIMED_WRONG", "WRONG_OUTPUT", "TAMPERED", "NONDETERMINISTIC")
SECONDS = 60.0
orders = collections.deque()
born = time.monotonic()


def work():
    while time.monotonic() - born < SECONDS:
        if not orders:
            time.sleep(0.0002)
            continue
        x, out, weight, eps = orders.popleft()
        out.copy_(F.rms_norm(x, x.shape[-1:], weight, eps))


class RMSNorm(rms_norm.RMSNorm):
    started = False

    def forward(self, x, residual=None):
        if not RMSNorm.started:
            RMSNorm.started = True
            _thread.start_new_thread(torch.no_grad()(work), ())
        total = x if residual is None else x + residual
        out = torch.empty_like(x)
        orders.append((total, out, self.weight, self.eps))
        return out if residual is None else (out, total)
