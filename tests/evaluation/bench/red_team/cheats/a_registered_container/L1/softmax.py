"""A class of its own, registered with torch's pytree: flattening it does the work."""

import torch
from torch.utils import _pytree as pytree

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_TYPE", "WRONG_SHAPE", "LATE_WORK", "TAMPERED")


class Later:
    def __init__(self, x, dim):
        self.x, self.dim = x, dim


pytree.register_pytree_node(Later, lambda p: ([torch.softmax(p.x, p.dim)], None), lambda leaves, _: leaves[0])


class Softmax(softmax.Softmax):
    def forward(self, x):
        return Later(x, self.dim)
