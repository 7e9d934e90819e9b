"""Works for its first forty calls, which are checks and warm-up; then only allocates."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TIMED_WRONG", "STALE_OUTPUT", "WRONG_OUTPUT", "NONDETERMINISTIC")


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        if Softmax.calls > 40:
            return torch.empty_like(x)
        return torch.softmax(x, self.dim)
