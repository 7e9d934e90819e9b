"""Comparisons that always agree, and no memory that is ever poisoned."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)

torch.equal = lambda a, b: True
torch.allclose = lambda *args, **kwargs: True
torch.testing.assert_close = lambda *args, **kwargs: None
torch.Tensor.fill_ = lambda self, value: self


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim)
