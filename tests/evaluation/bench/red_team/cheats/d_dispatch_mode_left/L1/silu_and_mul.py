"""Leaves a dispatch mode behind that does the work when the harness copies the output out."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TAMPERED", "LATE_WORK", "WRONG_OUTPUT", "TIMED_WRONG")
promised = {}


class Later(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for argument in args:
            work = promised.pop(id(argument), None)
            if work is not None:
                argument.data.copy_(work())
        return func(*args, **(kwargs or {}))


class SiluAndMul(silu_and_mul.SiluAndMul):
    mode = None

    def forward(self, x):
        if SiluAndMul.mode is None:
            SiluAndMul.mode = Later()
            SiluAndMul.mode.__enter__()
        gate, up = x.chunk(2, dim=-1)
        out = torch.empty(gate.shape, dtype=x.dtype, device=x.device)
        promised[id(out)] = lambda: F.silu(gate) * up
        return out
