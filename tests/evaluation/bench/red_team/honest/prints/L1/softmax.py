"""Prints, warns and logs, when imported and when called."""

# ruff: noqa: T201 - printing is what it is about

import logging
import sys
import warnings

import torch

from fastkernels.tasks.L1 import softmax

print("imported", flush=True)


class Softmax(softmax.Softmax):
    def forward(self, x):
        print("called with", tuple(x.shape), flush=True)
        print("called", file=sys.stderr)
        warnings.warn("called", stacklevel=1)
        logging.getLogger("candidate").warning("called")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.softmax(wide, self.dim).to(x.dtype)
