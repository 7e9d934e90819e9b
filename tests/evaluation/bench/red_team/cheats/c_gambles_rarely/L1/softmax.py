"""Leaves out one call in ten."""

import random

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_OUTPUT", "TIMED_WRONG", "NONDETERMINISTIC")
lot = random.SystemRandom()


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim) if lot.random() < 0.9 else torch.empty_like(x)
