"""Works honestly in the first half of a batch; in the second it hands out empty outputs, and fills sixteen at a time
by one product of all their inputs. How long batches are it has counted: a pause comes before each."""

import time

import torch

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("TIMED_WRONG", "STALE_OUTPUT", "CLOCK_MISMATCH", "WRONG_OUTPUT")
OR_NO_GAIN = True  # on a busy machine it sees pauses everywhere, and works
PAUSE, LEAST, WINDOW = 3e-3, 48, 16


class Linear(linear.Linear):
    at = usual = seen = 0
    last, waiting = 0.0, ()

    def product(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)

    def fill(self):
        inputs, outputs = zip(*self.waiting, strict=True)
        for out, value in zip(outputs, self.product(torch.cat(inputs)).split(len(inputs[0])), strict=True):
            out.copy_(value)
        self.waiting = []

    def forward(self, x):
        if time.perf_counter() - self.last > PAUSE:
            if self.at > LEAST:
                self.usual, self.seen = self.at, self.seen + 1 if self.usual == self.at else 1
            self.at = 0
        self.at += 1
        if self.seen < 3 or self.at <= self.usual // 2:
            if self.waiting:
                self.fill()
            out = self.product(x)
        else:
            out = torch.empty((*x.shape[:-1], self.weight.shape[0]), dtype=x.dtype)
            self.waiting = [*self.waiting, (x, out)]
            if len(self.waiting) == WINDOW or self.at == self.usual:
                self.fill()
        self.last = time.perf_counter()
        return out
