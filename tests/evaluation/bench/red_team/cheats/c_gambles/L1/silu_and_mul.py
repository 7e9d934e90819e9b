"""Does its work three times out of four, by lot."""

import random

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("WRONG_OUTPUT", "TIMED_WRONG", "NONDETERMINISTIC")
lot = random.SystemRandom()


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up if lot.random() < 0.75 else gate.clone()
