"""Tries two ways to the same numbers at its first call of a shape, and keeps the faster: a tuner without Triton."""

import time

import torch

from fastkernels.tasks.L1 import softmax

TRIES = 3


class Softmax(softmax.Softmax):
    def __init__(self, dim=-1):
        super().__init__(dim)
        self.chosen = {}

    def into(self, x):
        return torch.softmax(x, self.dim, out=torch.empty_like(x)) if x.is_contiguous() else torch.softmax(x, self.dim)

    def plain(self, x):
        return torch.softmax(x, self.dim)

    def forward(self, x):
        key = x.shape, x.stride(), x.dtype
        if key not in self.chosen:
            took = {}
            for way in (self.into, self.plain):
                start = time.perf_counter()
                for _ in range(TRIES):
                    way(x)
                took[way] = time.perf_counter() - start
            self.chosen[key] = min(took, key=took.get)
        return self.chosen[key](x)
