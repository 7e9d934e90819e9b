"""Takes an output's memory again when nobody but itself holds it any more."""

import sys

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

ALONE = 3  # the pool's list, the loop's variable, the call of getrefcount


class SiluAndMul(silu_and_mul.SiluAndMul):
    def __init__(self):
        super().__init__()
        self.pool = []

    def _free(self, like):
        for out in self.pool:
            if sys.getrefcount(out) == ALONE and (out.shape, out.dtype) == (like.shape, like.dtype):
                return out
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        self.pool.append(out)
        return out

    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return torch.mul(F.silu(gate), up, out=self._free(gate))
