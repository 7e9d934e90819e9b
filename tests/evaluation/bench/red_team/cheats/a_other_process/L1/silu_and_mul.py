"""Another process does the work into shared memory, after the call has returned."""

import os
import time

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TAMPERED", "LATE_WORK", "TIMED_WRONG", "WRONG_OUTPUT", "NONDETERMINISTIC")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        width = x.shape[-1] // 2
        out = torch.empty((*x.shape[:-1], width), dtype=x.dtype).share_memory_()
        values = x.clone()
        if os.fork() == 0:
            time.sleep(0.001)
            out.copy_(F.silu(values[..., :width]) * values[..., width:])
            os._exit(0)
        return out
