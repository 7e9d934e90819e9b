"""Through a read-only array of NumPy's, about which torch warns: that is not the candidate's message."""

import numpy as np
import torch

import fastkernels
from fastkernels.tasks.L1.squared_relu import TASK

ONE = np.ones(1, dtype=np.float32)
ONE.setflags(write=False)


@fastkernels.candidate("squared_relu")
class NumpySquaredReLU(TASK.interface):
    def forward(self, x):
        buffer = memoryview(ONE)
        return super().forward(x) * float(torch.frombuffer(buffer, dtype=torch.float32).shape[0])
