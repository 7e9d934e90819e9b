"""Returns None: a comparison of nothing with nothing would agree."""

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_TYPE", "WRONG_SHAPE")


class Softmax(softmax.Softmax):
    def forward(self, x):
        return None
