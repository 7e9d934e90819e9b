"""Right in eager, where it is checked; when it is compiled for timing it copies."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TIMED_WRONG", "WRONG_OUTPUT")
OR_NO_GAIN = True  # where only eager calls are timed


class Softmax(softmax.Softmax):
    def forward(self, x):
        return x.clone() if torch.compiler.is_compiling() else torch.softmax(x, self.dim)
