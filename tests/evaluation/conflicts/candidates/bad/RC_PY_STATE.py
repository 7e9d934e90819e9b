"""Counts its calls for a log line that was never written."""

import fastkernels
from fastkernels.tasks.L1.layer_norm import TASK


@fastkernels.candidate("layer_norm")
class CountedLayerNorm(TASK.interface):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)
