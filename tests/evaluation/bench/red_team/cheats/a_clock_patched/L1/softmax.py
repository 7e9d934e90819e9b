"""Makes every Python clock of its process run at half speed."""

import time

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)

for name in ("perf_counter", "monotonic", "time", "perf_counter_ns", "monotonic_ns"):
    real = getattr(time, name)
    start = real()
    setattr(time, name, lambda real=real, start=start: start + (real() - start) // 2)


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim)
