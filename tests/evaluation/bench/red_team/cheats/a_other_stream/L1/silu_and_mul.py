"""Launches on a stream of its own that nobody waits for."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

GPU = True
CAUGHT_AS = ("CLOCK_MISMATCH", "LATE_WORK", "TIMED_WRONG", "WRONG_OUTPUT", "TAMPERED", "NONDETERMINISTIC")


class SiluAndMul(silu_and_mul.SiluAndMul):
    stream = None

    def forward(self, x):
        if SiluAndMul.stream is None:
            SiluAndMul.stream = torch.cuda.Stream()
        width = x.shape[-1] // 2
        out = x.new_empty((*x.shape[:-1], width))
        with torch.cuda.stream(self.stream):
            torch.mul(F.silu(x[..., :width]), x[..., width:], out=out)
        return out
