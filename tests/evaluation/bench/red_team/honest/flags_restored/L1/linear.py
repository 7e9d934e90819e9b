"""Sets a precision flag inside its call and puts it back."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import linear


class Linear(linear.Linear):
    def forward(self, x):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return F.linear(x, self.weight, self.bias)
        finally:
            torch.set_float32_matmul_precision(before)
