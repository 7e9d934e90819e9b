"""Compiles its spying under the name of a file of torch's, so that who looks at file names sees torch."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED", "STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "ALIASED")
SOURCE = """
import gc
def find(shape, dtype, own):
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.shape == shape and thing.dtype == dtype and thing is not own:
            return thing
"""
space = {"torch": torch}
exec(compile(SOURCE, torch.__file__, "exec"), space)


class Softmax(softmax.Softmax):
    def forward(self, x):
        found = space["find"](x.shape, x.dtype, x)
        return torch.softmax(x, self.dim) if found is None else found
