"""Reaches the harness through a traceback, throws away what it has noted down, then looks for expected outputs."""

import gc

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TAMPERED", "STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "ALIASED", "NONDETERMINISTIC")


def harness():
    try:
        raise ValueError
    except ValueError as error:
        frame = error.__traceback__.tb_frame
    while frame is not None:
        if "harness" in frame.f_locals:
            return frame.f_locals["harness"]
        frame = frame.f_back
    return None


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        above = harness()
        found = [
            t
            for t in gc.get_objects()
            if type(t) is torch.Tensor
            and t.shape == gate.shape
            and t.dtype == x.dtype
            and t is not gate
            and t is not up
        ]
        if above is not None:
            above.snapshot = None
            above.audit.events.clear()
        return found[0] if found else F.silu(gate) * up
