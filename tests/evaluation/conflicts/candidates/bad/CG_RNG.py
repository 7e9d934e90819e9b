"""Draws a dither from a generator of its own, seeded alike in every call, inside an operator."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@custom_op("bad_cg_rng::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(device=x.device).manual_seed(0)
    noise = torch.rand(x.shape, generator=generator, device=x.device)
    return torch.nn.functional.silu(x) * (1 + 1e-9 * noise).to(x.dtype)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class DitheredSiLU(SiLU):
    def forward(self, x):
        return silu(x)
