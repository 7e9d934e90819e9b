"""FlashInfer's kernels. Those that write in place get copies, which they pay for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from fastkernels.evaluation.bench.baselines.assembled import assemble
from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.attention import Attention
from fastkernels.tasks.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP

HALVES = (torch.bfloat16, torch.float16)


@cache
def _library() -> Any:
    import flashinfer

    return flashinfer


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _weighted(facts: Mapping[str, Any]) -> str | None:
    return "it always has a weight" if facts.get("has_weight") is False else None


def _added(kernel: Any, weight: torch.Tensor, eps: float, x: torch.Tensor, residual: torch.Tensor) -> Any:
    out, total = _rows(x).clone(), _rows(residual).clone()
    kernel(out, total, weight, eps)
    return out.view(x.shape), total.view(residual.shape)


@candidate("rms_norm", devices=("cuda",), dtypes=HALVES, facts=_weighted)
class FlashInferRMSNorm(RMSNorm):
    """``rmsnorm``, and ``fused_add_rmsnorm`` on copies."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return _library().rmsnorm(_rows(x), self.weight, self.eps).view(x.shape)
        return _added(_library().fused_add_rmsnorm, self.weight, self.eps, x, residual)


@candidate("fused_add_rms_norm", devices=("cuda",), dtypes=HALVES)
class FlashInferFusedAddRMSNorm(FusedAddRMSNorm):
    """``fused_add_rmsnorm`` on copies."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _added(_library().fused_add_rmsnorm, self.norm.weight, self.norm.eps, x, residual)


@candidate("gemma_rms_norm", devices=("cuda",), dtypes=HALVES)
class FlashInferGemmaRMSNorm(GemmaRMSNorm):
    """``gemma_rmsnorm``, and ``gemma_fused_add_rmsnorm`` on copies."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return _library().gemma_rmsnorm(_rows(x), self.weight, self.eps).view(x.shape)
        return _added(_library().gemma_fused_add_rmsnorm, self.weight, self.eps, x, residual)


@candidate("silu_and_mul", devices=("cuda",), dtypes=HALVES)
class FlashInferSiluAndMul(SiluAndMul):
    """``silu_and_mul``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _library().silu_and_mul(x.contiguous())


@candidate("gelu_and_mul", devices=("cuda",), dtypes=HALVES)
class FlashInferGeluAndMul(GeluAndMul):
    """``gelu_and_mul`` or ``gelu_tanh_and_mul``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        library = _library()
        kernel = library.gelu_and_mul if self.approximate == "none" else library.gelu_tanh_and_mul
        return kernel(x.contiguous())


def _no_sinks(facts: Mapping[str, Any]) -> str | None:
    return "it is called without sinks" if facts["has_sinks"] else None


@candidate("attention", devices=("cuda",), dtypes=HALVES, facts=_no_sinks)
class FlashInferAttention(Attention):
    """``single_prefill_with_kv_cache``, or its decode for one query: one sequence, and no mask but causality."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if len(query) != 1 or mask is not None:
            raise NotImplementedError("single_prefill_with_kv_cache takes one sequence and no mask")
        window = -1 if self.sliding_window is None else self.sliding_window - 1
        shared = {"kv_layout": "HND", "sm_scale": self.scale, "window_left": window}
        shared["logits_soft_cap"] = self.logits_soft_cap
        keys, values = key[0], value[0]
        if query.shape[2] == 1:
            return _library().single_decode_with_kv_cache(query[0, :, 0], keys, values, **shared)[None, :, None]
        by_token = query[0].transpose(0, 1).contiguous()
        out = _library().single_prefill_with_kv_cache(by_token, keys, values, causal=self.causal, **shared)
        return out.transpose(0, 1)[None]


@candidate("gated_mlp", devices=("cuda",), dtypes=HALVES)
class FlashInferMLP(LlamaMLP):
    """Torch's products around FlashInfer's activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, (FlashInferSiluAndMul, FlashInferGeluAndMul))
