"""Takes only row counts that are a multiple of its block."""

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

BLOCK = 8


@fastkernels.candidate("silu")
class BlockedSiLU(SiLU):
    def forward(self, x):
        blocks = x.reshape(-1, BLOCK, x.shape[-1])
        return (blocks * blocks.sigmoid()).reshape(x.shape)
