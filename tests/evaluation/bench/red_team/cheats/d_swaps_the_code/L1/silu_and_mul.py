"""Leaves every name and object in place and swaps the bytecode inside: identities stay what they were."""

import sys
import types

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TAMPERED", "TIMED_WRONG", "FORGED", "CRASH", "CALL_ERROR", "WRONG_OUTPUT")


def nothing(*args, **kwargs):
    return []


for name, module in list(sys.modules.items()):
    if name.startswith("fastkernels.evaluation.bench"):
        for value in list(vars(module).values()):
            if isinstance(value, types.FunctionType) and not value.__code__.co_freevars:
                words = ("poison", "tamper", "snapshot", "differ", "alias")
                if any(w in value.__name__.lower() for w in words):
                    value.__code__ = nothing.__code__


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
