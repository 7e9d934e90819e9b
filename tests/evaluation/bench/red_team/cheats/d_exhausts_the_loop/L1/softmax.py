"""Finds the loop that calls it, through frames and the collector, and runs its iterator dry: fewer calls."""

import gc
import sys

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TIMED_WRONG", "TAMPERED", "FORGED", "CRASH", "CALL_ERROR", "WRONG_OUTPUT", "CLOCK_MISMATCH")
ITERATORS = tuple(type(i) for i in (iter([]), iter(()), iter(range(0)), zip(), enumerate(()), iter({}.items())))


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        if Softmax.calls > 20:
            frame = sys._getframe(1)
            while frame is not None:
                inside = "evaluation/bench" in frame.f_code.co_filename
                for thing in gc.get_referents(frame) if inside else ():
                    if isinstance(thing, ITERATORS):
                        for _ in range(10000):
                            if next(thing, None) is None:
                                break
                frame = frame.f_back
        return torch.softmax(x, self.dim)
