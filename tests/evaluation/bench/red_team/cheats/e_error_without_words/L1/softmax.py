"""Raises what cannot be printed, pickled or caught as an Exception."""

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("CALL_ERROR", "CRASH")


class Wordless(BaseException):
    def __str__(self):
        raise self

    __repr__ = __str__

    def __reduce__(self):
        raise self


class Softmax(softmax.Softmax):
    def forward(self, x):
        raise Wordless
