"""DeepGEMM's products, for Hopper and later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.linear import Linear


def _no_bias(facts: Mapping[str, Any]) -> str | None:
    return "it adds no bias" if facts["bias"] else None


@candidate("linear", devices=("cuda",), dtypes=(torch.bfloat16,), capability=(9, 0), facts=_no_bias)
class DeepGemmLinear(Linear):
    """``bf16_gemm_nt``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import deep_gemm

        rows = x.reshape(-1, self.input_size).contiguous()
        out = rows.new_empty(len(rows), self.output_size)
        deep_gemm.bf16_gemm_nt(rows, self.weight, out)
        return out.view(*x.shape[:-1], self.output_size)
