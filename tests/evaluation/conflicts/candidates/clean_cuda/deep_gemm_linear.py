"""DeepGEMM's bfloat16 product behind an operator that declares its result; it compiles a kernel for each shape, so
the operator prefers torch where a stream is being captured and its shape is not warm."""

import deep_gemm
import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.linear import Linear

WARM = set()


@custom_op("clean_cuda_deep_gemm::linear", mutates_args=())
def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    key = rows.shape, weight.shape, x.device
    if key not in WARM and torch.cuda.is_current_stream_capturing():
        return torch.nn.functional.linear(x, weight)
    out = torch.empty(rows.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    deep_gemm.bf16_gemm_nt(rows.contiguous(), weight.contiguous(), out)
    WARM.add(key)
    return out.view(*x.shape[:-1], weight.shape[0])


@linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@fastkernels.candidate("linear", devices=("cuda",), dtypes=(torch.bfloat16,))
class DeepGemmLinear(Linear):
    def forward(self, x):
        if self.bias is not None or x.shape[-1] % 64 or self.weight.shape[0] % 64:
            return super().forward(x)
        return linear(x, self.weight)
