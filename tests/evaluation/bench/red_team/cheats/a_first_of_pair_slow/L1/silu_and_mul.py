"""The same without looking at frames: a batch is known by the pause before it; every other batch starts with a nap.

Half of the guesses make the short batches long, and the slope between short and long small."""

import time

import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("CLOCK_MISMATCH", "TAMPERED", "TIMED_WRONG", "BELOW_ROOFLINE")
OR_NO_GAIN = True


class SiluAndMul(silu_and_mul.SiluAndMul):
    last, calls, lengths = 0.0, 0, []

    def forward(self, x):
        cls = SiluAndMul
        now = time.perf_counter()
        if now - cls.last > 3e-4:
            cls.lengths.append(cls.calls)
            cls.calls = 0
            recent = [n for n in cls.lengths[-6:] if n > 1]
            if len(recent) > 3 and recent[-1] == max(recent):  # a long one has just been: now a short one
                time.sleep(0.0005)
        cls.calls += 1
        gate, up = x.chunk(2, dim=-1)
        out = F.silu(gate) * up
        cls.last = time.perf_counter()
        return out
