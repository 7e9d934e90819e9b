"""Refuses what it would lose: every case but one by its constructor's facts, and float32."""

import torch

import fastkernels
from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("SKIPPED",)


@fastkernels.candidate("softmax", devices=("tpu",))
class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.softmax(x, self.dim)
