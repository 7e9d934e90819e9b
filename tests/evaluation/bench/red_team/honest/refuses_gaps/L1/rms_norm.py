"""Takes rows that follow each other only, and says so where they do not."""

from fastkernels.tasks.L1 import rms_norm


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        if not x.is_contiguous():
            raise ValueError("x must be contiguous")
        return super().forward(x, residual)
