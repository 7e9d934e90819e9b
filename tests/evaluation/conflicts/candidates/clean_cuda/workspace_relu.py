"""Two Triton launches with scratch in between: as large as it will ever be from the first call on."""

import torch
import triton
import triton.language as tl
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU

LARGEST = 1 << 22  # elements
SCRATCH = {}


@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, tl.where(value > 0, value, 0.0).to(out.dtype.element_ty), mask=at < n)


@custom_op("clean_cuda_workspace_relu::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    n, key = x.numel(), (x.dtype, x.device)
    if key not in SCRATCH:
        SCRATCH[key] = torch.empty(LARGEST, dtype=x.dtype, device=x.device)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    grid = (triton.cdiv(n, 1024),)
    kernel[grid](x.contiguous(), SCRATCH[key], n, BLOCK=1024)
    kernel[grid](SCRATCH[key], out, n, BLOCK=1024)
    return out


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class OpReLU(ReLU):
    def forward(self, x):
        return relu(x)
