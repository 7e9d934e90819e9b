"""Raises SystemExit(0), which a careless loop takes for success."""

import sys

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("CRASH", "CALL_ERROR")


class Softmax(softmax.Softmax):
    def forward(self, x):
        sys.exit(0)
