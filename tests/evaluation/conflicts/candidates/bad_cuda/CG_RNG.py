"""Dithers from one generator of its own on the device, which no graph knows."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

GENERATORS = {}


@custom_op("bad_cuda_cg_rng::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    if x.device not in GENERATORS:
        GENERATORS[x.device] = torch.Generator(device=x.device)
    noise = torch.rand(x.shape, generator=GENERATORS[x.device], device=x.device)
    return torch.nn.functional.silu(x) * (1 + 1e-9 * noise).to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
