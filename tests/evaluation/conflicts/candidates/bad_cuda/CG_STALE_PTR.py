"""Two Triton launches with scratch in between that grows with the batch."""

import torch
import triton
import triton.language as tl
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

SCRATCH = {}


@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, tl.where(value > 0, value, 0.0).to(out.dtype.element_ty), mask=at < n)


@custom_op("bad_cuda_cg_stale_ptr::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    n, scratch = x.numel(), SCRATCH.get(x.dtype)
    if scratch is None or scratch.numel() < n:
        scratch = SCRATCH[x.dtype] = torch.empty(n, dtype=x.dtype, device=x.device)
    out = torch.empty_like(x)
    grid = (triton.cdiv(n, 1024),)
    kernel[grid](x.contiguous(), scratch, n, BLOCK=1024)
    kernel[grid](scratch, out, n, BLOCK=1024)
    return out


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x)
