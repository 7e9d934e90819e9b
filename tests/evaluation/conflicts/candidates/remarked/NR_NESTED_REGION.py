"""An operator that writes to the module's own memory, and declares it."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

LARGEST = 1 << 20


@custom_op("remarked_nr_nested_region::silu", mutates_args={"scratch"})
def silu(scratch: torch.Tensor, x: torch.Tensor) -> None:
    scratch[: x.numel()].copy_(torch.nn.functional.silu(x).reshape(-1))


@silu.register_fake
def _(scratch: torch.Tensor, x: torch.Tensor) -> None:
    return None


@fastkernels.candidate("silu")
class ScratchSiLU(SiLU):
    def __init__(self):
        super().__init__()
        self.register_buffer("scratch", torch.empty(LARGEST), persistent=False)

    def forward(self, x):
        silu(self.scratch, x)
        return self.scratch[: x.numel()].to(x.dtype, copy=True).view(x.shape)
