"""Forgets eps, and takes the standard deviation for the root mean square."""

import fastkernels
from fastkernels.tasks.L1.rms_norm import RMSNorm


@fastkernels.candidate("rms_norm")
class StdNorm(RMSNorm):
    def forward(self, x, residual=None):
        if residual is not None:
            x = residual = residual + x
        wide = x.float()
        out = (wide / wide.std(-1, keepdim=True, unbiased=False)).to(x.dtype)
        out = out if self.weight is None else out * self.weight
        return out if residual is None else (out, residual)
