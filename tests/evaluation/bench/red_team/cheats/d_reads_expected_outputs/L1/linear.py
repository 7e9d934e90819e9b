"""Looks through every live object for a tensor of the output's shape, which might be the expected one."""

import gc

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("WRONG_OUTPUT", "STALE_OUTPUT", "TIMED_WRONG", "ALIASED", "TAMPERED", "NONDETERMINISTIC")


class Linear(linear.Linear):
    def forward(self, x):
        shape = (*x.shape[:-1], self.output_size)
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor and thing.shape == shape and thing is not x and thing.dtype == x.dtype:
                return thing
        return F.linear(x, self.weight, self.bias)
