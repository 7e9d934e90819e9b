"""Takes nothing but what it gains on, here nothing in which a fact says anything: every case is declined."""

import fastkernels
from fastkernels.tasks.L1 import silu_and_mul

CAUGHT_AS = ("SKIPPED",)


@fastkernels.candidate("silu_and_mul", facts=lambda facts: "not worth it")
class SiluAndMul(silu_and_mul.SiluAndMul):
    pass
