"""Leaves the row count of its last call in an environment variable."""

import os

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@fastkernels.candidate("relu")
class TellingReLU(ReLU):
    def forward(self, x):
        os.environ["RELU_LAST_WIDTH"] = str(x.shape[-1])
        return super().forward(x)
