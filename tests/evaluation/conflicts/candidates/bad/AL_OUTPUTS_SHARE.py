"""One allocation for both results: the operator returns the two halves of a buffer."""

import torch

import fastkernels
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm


def add_norm(x, residual, weight, eps):
    out = torch.empty((2, *x.shape), dtype=x.dtype, device=x.device)
    torch.add(x, residual, out=out[1])
    out[0].copy_(torch.nn.functional.rms_norm(out[1], weight.shape, weight, eps))
    return out[0], out[1]


library = torch.library.Library("bad_al_outputs_share", "DEF")
library.define("add_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)")
library.impl("add_norm", add_norm, "CompositeExplicitAutograd")
torch.library.register_fake(
    "bad_al_outputs_share::add_norm", lambda x, residual, weight, eps: (torch.empty_like(x), torch.empty_like(x))
)


@fastkernels.candidate("fused_add_rms_norm")
class OneBuffer(FusedAddRMSNorm):
    def forward(self, x, residual):
        return torch.ops.bad_al_outputs_share.add_norm(x, residual, self.norm.weight, self.norm.eps)
