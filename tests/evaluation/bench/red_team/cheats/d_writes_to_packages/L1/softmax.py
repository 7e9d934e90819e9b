"""Opens a file among the installed packages for writing, as one that would slow the baselines down is opened."""

import os

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)
TARGET = os.path.join(os.path.dirname(os.path.dirname(torch.__file__)), "fastkernels_red_team_probe.txt")


class Softmax(softmax.Softmax):
    def forward(self, x):
        os.close(os.open(TARGET, os.O_CREAT | os.O_WRONLY))
        os.unlink(TARGET)
        return torch.softmax(x, self.dim)
