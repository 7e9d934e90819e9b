"""vLLM's custom operators, on CUDA and on CPU. Those that write in place get copies, which they pay for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from fastkernels.evaluation.bench.baselines.assembled import assemble
from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.gelu import GELU
from fastkernels.tasks.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.L1.quick_gelu import QuickGELU
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L1.topk_softmax import TopkSoftmax
from fastkernels.tasks.L2.attention_block import LlamaAttention
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from fastkernels.tasks.L2.fused_experts import FusedExperts
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from fastkernels.tasks.L2.moe_router import TopKRouter
from fastkernels.tasks.L2.served_attention import ServedAttention
from fastkernels.tasks.L2.shared_expert_moe import SharedExpertMoE
from fastkernels.tasks.L3.decoder_layer import LlamaDecoderLayer
from fastkernels.tasks.L3.served_layer import ServedDecoderLayer

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HALVES = (torch.bfloat16, torch.float16)


@cache
def _ops() -> Any:
    import vllm._custom_ops as ops  # loads the extension

    return ops


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _normed(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    rows = _rows(x)
    out = torch.empty_like(rows)
    _ops().rms_norm(out, rows, norm.weight, norm.eps)
    return out.view(x.shape)


def _added_and_normed(norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, total = _rows(x).clone(), _rows(residual).clone()
    _ops().fused_add_rms_norm(out, total, norm.weight, norm.eps)
    return out.view(x.shape), total.view(residual.shape)


def _early_cast(facts: Mapping[str, Any]) -> str | None:
    if facts.get("has_weight") is False:
        return "it always has a weight"
    return "it rounds before it multiplies by the weight" if facts["late_cast"] else None


@candidate("rms_norm", dtypes=DTYPES, facts=_early_cast)
class VllmRMSNorm(RMSNorm):
    """``rms_norm``, and ``fused_add_rms_norm`` on copies."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return _normed(self, x) if residual is None else _added_and_normed(self, x, residual)


@candidate("fused_add_rms_norm", dtypes=DTYPES, facts=_early_cast)
class VllmFusedAddRMSNorm(FusedAddRMSNorm):
    """``fused_add_rms_norm`` on copies."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _added_and_normed(self.norm, x, residual)


def _gated(name: str, x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    getattr(torch.ops._C, name)(out, x.contiguous())
    return out


@candidate("silu_and_mul", dtypes=DTYPES)
class VllmSiluAndMul(SiluAndMul):
    """``silu_and_mul``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _ops()
        return _gated("silu_and_mul", x)


@candidate("gelu_and_mul", dtypes=DTYPES)
class VllmGeluAndMul(GeluAndMul):
    """``gelu_and_mul`` or ``gelu_tanh_and_mul``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _ops()
        return _gated("gelu_and_mul" if self.approximate == "none" else "gelu_tanh_and_mul", x)


def _tanh(facts: Mapping[str, Any]) -> str | None:
    return None if facts["approximate"] == "tanh" else "it knows the tanh approximation only"


@candidate("gelu", dtypes=DTYPES, facts=_tanh)
class VllmGELU(GELU):
    """``gelu_new``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _ops()
        out = torch.empty_like(x)
        torch.ops._C.gelu_new(out, x.contiguous())
        return out


@candidate("quick_gelu", dtypes=DTYPES)
class VllmQuickGELU(QuickGELU):
    """``gelu_quick``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _ops()
        out = torch.empty_like(x)
        torch.ops._C.gelu_quick(out, x.contiguous())
        return out


@candidate("rotary_emb", dtypes=DTYPES)
class VllmRotaryEmbedding(RotaryEmbedding):
    """``rotary_embedding`` on copies."""

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key = query.clone(), None if key is None else key.clone()
        table = self.cos_sin_cache.to(query.dtype)
        _ops().rotary_embedding(positions, query, key, self.head_size, table, self.is_neox_style)
        return query, key


@candidate("topk_softmax", devices=("cuda",), dtypes=DTYPES)
class VllmTopkSoftmax(TopkSoftmax):
    """``topk_softmax``."""

    def forward(self, gating_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape, device = (len(gating_output), self.top_k), gating_output.device
        weights = torch.empty(shape, dtype=torch.float32, device=device)
        ids, rows = (torch.empty(shape, dtype=d, device=device) for d in (torch.int64, torch.int32))
        _ops().topk_softmax(weights, ids, rows, gating_output.contiguous(), self.renormalize)
        return weights, ids


def _silu(facts: Mapping[str, Any]) -> str | None:
    return None if facts["hidden_act"] == "silu" else "it is called with silu only"


@candidate("fused_experts", devices=("cuda",), dtypes=HALVES, facts=_silu)
class VllmFusedExperts(FusedExperts):
    """The Triton ``fused_experts``, tuned for the device where vLLM ships a configuration."""

    def forward(self, hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> torch.Tensor:
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        weights, ids = topk_weights.to(torch.float32), topk_ids.to(torch.int32)
        return fused_experts(hidden_states, self.w13_weight, self.w2_weight, weights, ids)


PARTS = (
    VllmRMSNorm,
    VllmFusedAddRMSNorm,
    VllmSiluAndMul,
    VllmGeluAndMul,
    VllmRotaryEmbedding,
    VllmTopkSoftmax,
    VllmFusedExperts,
)


@candidate("gated_mlp", dtypes=DTYPES)
class VllmMLP(LlamaMLP):
    """Torch's products around vLLM's activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)


@candidate("moe_router", devices=("cuda",), dtypes=DTYPES)
class VllmRouter(TopKRouter):
    """Torch's product before vLLM's routing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)


@candidate("shared_expert_moe", devices=("cuda",), dtypes=HALVES)
class VllmMoE(SharedExpertMoE):
    """vLLM's routing and experts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)


@candidate("attention_block", dtypes=DTYPES)
class VllmAttentionBlock(LlamaAttention):
    """vLLM's norms around torch's products and attention; RoPE by given tables is the reference's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)


@candidate("served_attention", dtypes=DTYPES)
class VllmServedAttention(ServedAttention):
    """vLLM's norms and RoPE around torch's products."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)


@candidate("decoder_layer", dtypes=DTYPES)
class VllmDecoderLayer(LlamaDecoderLayer):
    """vLLM's norms and activation around torch's products and attention."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)


@candidate("served_layer", dtypes=DTYPES)
class VllmServedLayer(ServedDecoderLayer):
    """vLLM's norms, RoPE and activation around torch's products."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, PARTS)
