"""Fills every tensor it can find, but its own argument, with NaN: whatever is compared with is then NaN too."""

import gc

import torch

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("MUTATED_INPUT", "WRONG_OUTPUT", "TAMPERED", "TIMED_WRONG", "CALL_ERROR", "CRASH")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate = x[..., : x.shape[-1] // 2]
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor and thing is not x and thing.shape in (gate.shape, x.shape):
                with torch.no_grad():
                    thing.fill_(float("nan") if thing.is_floating_point() else 0)
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        return out.fill_(float("nan"))
