"""Right when called; an empty allocation when a CUDA graph is captured for timing."""

import torch

from fastkernels.tasks.L1 import softmax

GPU = True
CAUGHT_AS = ("TIMED_WRONG", "WRONG_OUTPUT")


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.empty_like(x) if torch.cuda.is_current_stream_capturing() else torch.softmax(x, self.dim)
