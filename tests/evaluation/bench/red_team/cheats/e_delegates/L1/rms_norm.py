"""Inherits and passes. Right, and worth what the reference is worth: never more than 1."""

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ()
DELEGATES = True


class RMSNorm(rms_norm.RMSNorm):
    pass
