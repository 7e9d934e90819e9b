"""NaN everywhere: a comparison that asks whether the error is too large never says yes."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_OUTPUT",)


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.full_like(x, float("nan"))
