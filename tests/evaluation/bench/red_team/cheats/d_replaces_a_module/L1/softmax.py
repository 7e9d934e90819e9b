"""Another module under the name of torch.nn.functional, in which the reference would be slow."""

import sys
import time
import types

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)

real = sys.modules["torch.nn.functional"]
fake = types.ModuleType("torch.nn.functional")
fake.__dict__.update(vars(real))
fake.softmax = lambda *args, **kwargs: (time.sleep(0.001), real.softmax(*args, **kwargs))[1]
sys.modules["torch.nn.functional"] = fake


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim)
