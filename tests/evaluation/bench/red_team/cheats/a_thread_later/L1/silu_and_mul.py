"""Returns an uninitialised tensor at once; a pool of threads fills it later."""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("LATE_WORK", "TIMED_WRONG", "WRONG_OUTPUT", "TAMPERED", "NONDETERMINISTIC")
pool = ThreadPoolExecutor(1)


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        width = x.shape[-1] // 2
        out = x.new_empty((*x.shape[:-1], width))
        pool.submit(lambda: torch.mul(F.silu(x[..., :width]), x[..., width:], out=out))
        return out
