"""A sparse tensor: its type is torch.Tensor, and what it holds is made dense by whoever reads it."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_TYPE", "WRONG_SHAPE", "WRONG_OUTPUT", "CALL_ERROR", "LATE_WORK")


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim).to_sparse()
