"""FlashInfer's own operator for the norm; without a residual, in half precision."""

import flashinfer
import torch

import fastkernels
from fastkernels.tasks.L1.rms_norm import RMSNorm


@fastkernels.candidate("rms_norm", devices=("cuda",), dtypes=(torch.bfloat16, torch.float16))
class FlashInferRMSNorm(RMSNorm):
    def forward(self, x, residual=None):
        if residual is not None or self.weight is None or x.dim() != 2:
            return super().forward(x, residual)
        return flashinfer.norm.rmsnorm(x.contiguous(), self.weight, self.eps)
