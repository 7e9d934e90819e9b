"""Outputs kept by address and version counter, which writes from outside the process do not raise."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("STALE_OUTPUT", "TIMED_WRONG", "WRONG_OUTPUT", "NONDETERMINISTIC", "ALIASED")


class SiluAndMul(silu_and_mul.SiluAndMul):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def forward(self, x):
        key = (x.data_ptr(), x._version, x.shape)
        if key not in self.kept:
            self.kept[key] = F.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :]
        return self.kept[key].clone()
