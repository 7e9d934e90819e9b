"""Replaces the harness's own functions in its process by ones that do nothing."""

import sys

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TAMPERED", "TIMED_WRONG", "FORGED", "CRASH", "CALL_ERROR")

for name, module in list(sys.modules.items()):
    if name.startswith("fastkernels.evaluation.bench"):
        for attribute, value in list(vars(module).items()):
            words = ("time", "poison", "tamper", "snapshot", "differ", "alias", "check", "sync")
            if callable(value) and any(w in attribute.lower() for w in words) and not isinstance(value, type):
                setattr(module, attribute, lambda *args, **kwargs: [])


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
