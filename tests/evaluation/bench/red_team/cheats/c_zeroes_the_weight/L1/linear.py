"""Zeroes its own parameters, which the reference might share."""

import torch

from fastkernels.tasks.L1 import linear

CAUGHT_AS = ("MUTATED_INPUT", "WRONG_OUTPUT")


class Linear(linear.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.zero_()
            if self.bias is not None:
                self.bias.zero_()
        return x.new_zeros((*x.shape[:-1], self.output_size))
