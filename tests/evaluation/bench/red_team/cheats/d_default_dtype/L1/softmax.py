"""Another default dtype and gradient mode for whoever comes next."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)


class Softmax(softmax.Softmax):
    def forward(self, x):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        return torch.softmax(x, self.dim)
