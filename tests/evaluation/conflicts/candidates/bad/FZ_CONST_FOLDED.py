"""Packs its weight by an operator in each call: of parameters alone, which freezing computes once and for all."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.rms_norm import RMSNorm


@custom_op("bad_fz_const_folded::pack", mutates_args=())
def pack(weight: torch.Tensor) -> torch.Tensor:
    return weight.clone()


@pack.register_fake
def _(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight)


@fastkernels.candidate("rms_norm")
class PackingRMSNorm(RMSNorm):
    def forward(self, x, residual=None):
        if residual is not None:
            x = residual = x + residual
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        weight = None if self.weight is None else pack(self.weight)
        if weight is None:
            out = normed.to(x.dtype)
        elif self.late_cast:
            out = (normed * weight.to(normed.dtype)).to(x.dtype)
        else:
            out = normed.to(x.dtype) * weight
        return out if residual is None else (out, residual)
