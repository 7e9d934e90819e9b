"""Torch's own fused operators, where the reference spells out what they compute, and its attention backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.attention import Attention
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.L1.softmax import Softmax
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm


@candidate("rms_norm")
class TorchRMSNorm(RMSNorm):
    """``F.rms_norm``, after a plain add."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = x if residual is None else residual + x
        out = F.rms_norm(x, (self.hidden_size,), self.weight, self.eps)
        return out if residual is None else (out, x)


@candidate("fused_add_rms_norm")
class TorchFusedAddRMSNorm(FusedAddRMSNorm):
    """A plain add and ``F.rms_norm``."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = residual + x
        return F.rms_norm(total, total.shape[-1:], self.norm.weight, self.norm.eps), total


@candidate("gemma_rms_norm", dtypes=(torch.float32, torch.float64))
class TorchGemmaRMSNorm(GemmaRMSNorm):
    """``F.rms_norm`` with the weight raised by one; narrower dtypes would round ``1 + weight`` first."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = x if residual is None else residual + x
        out = F.rms_norm(x, (self.hidden_size,), self.weight + 1.0, self.eps)
        return out if residual is None else (out, x)


def _norm_first_of_silu(facts: Mapping[str, Any]) -> str | None:
    return None if facts["norm_before_gate"] and facts["activation"] == "silu" else "it gates by silu after the norm"


@candidate("rms_norm_gated", dtypes=(torch.float32,), facts=_norm_first_of_silu)
class TorchRMSNormGated(RMSNormGated):
    """``F.rms_norm`` times ``F.silu``; narrower dtypes would round the gate."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.hidden_size,), self.weight, self.eps) * F.silu(z)


@candidate("softmax")
class TorchSoftmax(Softmax):
    """``F.softmax`` in the input's dtype; its kernels accumulate in float32 by themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softmax(x, dim=self.dim)


def _plain(facts: Mapping[str, Any]) -> str | None:
    extras = ("sliding_window", "logits_soft_cap")
    if any(facts[name] is not None for name in extras) or facts["has_sinks"]:
        return "it knows no window, soft cap or sinks"
    return None


class _Sdpa(Attention):
    """Attention through one given backend of ``scaled_dot_product_attention``."""

    backend: SDPBackend

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        with sdpa_kernel([self.backend]):
            return super().forward(query, key, value, mask)


@candidate("attention", facts=_plain)
class SdpaFlash(_Sdpa):
    """FlashAttention as torch builds it."""

    backend = SDPBackend.FLASH_ATTENTION


@candidate("attention", devices=("cuda",), facts=_plain)
class SdpaCudnn(_Sdpa):
    """cuDNN's attention."""

    backend = SDPBackend.CUDNN_ATTENTION


@candidate("attention", devices=("cuda",), facts=_plain)
class SdpaEfficient(_Sdpa):
    """The memory-efficient kernel."""

    backend = SDPBackend.EFFICIENT_ATTENTION
