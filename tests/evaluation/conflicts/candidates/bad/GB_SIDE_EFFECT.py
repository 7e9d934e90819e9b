"""Prints which path it took, left over from debugging."""

import fastkernels
from fastkernels.tasks.L1.quick_gelu import TASK


@fastkernels.candidate("quick_gelu")
class ChattyQuickGelu(TASK.interface):
    def forward(self, x):
        print("quick_gelu: generic path", tuple(x.shape))  # noqa: T201 - the bad habit itself
        return super().forward(x)
