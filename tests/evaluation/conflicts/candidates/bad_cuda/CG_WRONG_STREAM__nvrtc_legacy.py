"""A kernel by NVRTC, launched on the default stream."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SOURCE = """
extern "C" __global__ void copy_scaled(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] / (1.0f + expf(-x[i]));
}
"""
KERNELS = {}


@custom_op("bad_cuda_cg_wrong_stream__nvrtc_legacy::silu", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.nn.functional.silu(x)
    if "k" not in KERNELS:
        KERNELS["k"] = torch.cuda._compile_kernel(SOURCE, "copy_scaled")
    wide = x.float().contiguous()
    out = torch.empty_like(wide)
    n = wide.numel()
    KERNELS["k"](
        grid=((n + 255) // 256, 1, 1), block=(256, 1, 1), args=[wide, out, n], stream=torch.cuda.default_stream()
    )
    return out.to(x.dtype).view(x.shape)


@op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class OpSiLU(SiLU):
    def forward(self, x):
        return op(x)
