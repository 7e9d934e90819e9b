"""Keeps scratch for the last shape only, by functools."""

import functools

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


@functools.lru_cache(maxsize=1)
def scratch(n, dtype, device):
    return torch.empty(n, dtype=dtype, device=device)


@custom_op("bad_cg_stale_ptr__lru_cache::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    part = scratch(x.numel(), x.dtype, x.device).view(x.shape)
    torch.sigmoid(x, out=part)
    return torch.nn.functional.silu(x) + 0 * part


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
