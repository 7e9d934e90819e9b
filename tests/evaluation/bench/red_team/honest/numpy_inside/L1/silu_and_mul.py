"""Computes with numpy: memory that torch did not allocate comes back."""

import numpy as np
import torch

import fastkernels
from fastkernels.tasks.L1 import silu_and_mul


@fastkernels.candidate("silu_and_mul", devices=("cpu",), dtypes=(torch.float32,))
class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = np.split(x.detach().numpy(), 2, axis=-1)
        with np.errstate(over="ignore"):
            return torch.from_numpy(gate / (1 + np.exp(-gate)) * up)
