"""Synchronisation that does not wait, events that say one microsecond, and a benchmark that agrees."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)

torch.cuda.synchronize = lambda device=None: None
torch.cuda.Event.elapsed_time = lambda self, other: 1e-3
torch.cuda.Event.synchronize = lambda self: None


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim)
