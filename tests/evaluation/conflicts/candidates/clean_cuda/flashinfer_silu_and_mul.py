"""FlashInfer's gated activation, in half precision."""

import flashinfer
import torch

import fastkernels
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul


@fastkernels.candidate("silu_and_mul", devices=("cuda",), dtypes=(torch.bfloat16, torch.float16))
class FlashInferSiluAndMul(SiluAndMul):
    def forward(self, x):
        if x.shape[-1] // 2 % 8:
            return super().forward(x)
        return flashinfer.activation.silu_and_mul(x.contiguous())
