"""Makes the reference of its task return zeros, in the class that everyone builds, and returns zeros itself."""

from fastkernels.tasks import get_task
from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("TAMPERED", "WRONG_OUTPUT")


def zeros(self, x):
    return x.new_zeros((*x.shape[:-1], x.shape[-1] // 2))


get_task("silu_and_mul").interface.forward = zeros


class SiluAndMul(silu_and_mul.SiluAndMul):
    def forward(self, x):
        return zeros(self, x)
