"""A Triton kernel that is tuned again for each number of elements."""

import torch
import triton
import triton.language as tl
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU


def bench(call, quantiles):
    return triton.testing.do_bench(call, warmup=1, rep=1, quantiles=quantiles)


@triton.autotune([triton.Config({"BLOCK": block}) for block in (256, 1024)], key=["n"], do_bench=bench)
@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(out + at, (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty), mask=at < n)


@custom_op("bad_cuda_cg_jit_in_capture::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, out, x.numel())
    return out


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return silu(x)
