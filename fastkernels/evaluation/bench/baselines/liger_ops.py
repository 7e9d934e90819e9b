"""Liger-Kernel's Triton kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from fastkernels.evaluation.bench.baselines.assembled import assemble
from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.layer_norm import LayerNorm
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L1.softmax import Softmax
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP


@cache
def _library() -> Any:
    from liger_kernel.transformers import functional

    return functional


def _early_cast(facts: Mapping[str, Any]) -> str | None:
    if facts.get("has_weight") is False:
        return "it is called with a weight"
    return "it rounds before it multiplies by the weight" if facts["late_cast"] else None


@candidate("rms_norm", devices=("cuda",), facts=_early_cast)
class LigerRMSNorm(RMSNorm):
    """``liger_rms_norm``, or ``liger_fused_add_rms_norm``."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return _library().liger_rms_norm(x, self.weight, self.eps, in_place=False)
        return _library().liger_fused_add_rms_norm(x, residual, self.weight, self.eps, in_place=False)


@candidate("fused_add_rms_norm", devices=("cuda",), facts=_early_cast)
class LigerFusedAddRMSNorm(FusedAddRMSNorm):
    """``liger_fused_add_rms_norm``."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _library().liger_fused_add_rms_norm(x, residual, self.norm.weight, self.norm.eps, in_place=False)


@candidate("gemma_rms_norm", devices=("cuda",))
class LigerGemmaRMSNorm(GemmaRMSNorm):
    """``liger_rms_norm`` with an offset of one, or ``liger_fused_add_rms_norm``."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        how = {"offset": 1.0, "casting_mode": "gemma", "in_place": False}
        if residual is None:
            return _library().liger_rms_norm(x, self.weight, self.eps, **how)
        return _library().liger_fused_add_rms_norm(x, residual, self.weight, self.eps, **how)


def _both(facts: Mapping[str, Any]) -> str | None:
    return None if facts["weight"] and facts["bias"] else "it has a weight and a bias"


@candidate("layer_norm", devices=("cuda",), facts=_both)
class LigerLayerNorm(LayerNorm):
    """``liger_layer_norm``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _library().liger_layer_norm(x, self.weight, self.bias, self.eps)


@candidate("silu_and_mul", devices=("cuda",))
class LigerSiluAndMul(SiluAndMul):
    """``liger_swiglu``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _library().liger_swiglu(*x.chunk(2, dim=-1))


def _tanh(facts: Mapping[str, Any]) -> str | None:
    return None if facts["approximate"] == "tanh" else "it knows the tanh approximation only"


@candidate("gelu_and_mul", devices=("cuda",), facts=_tanh)
class LigerGeluAndMul(GeluAndMul):
    """``liger_geglu``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _library().liger_geglu(*x.chunk(2, dim=-1))


def _last_axis(facts: Mapping[str, Any]) -> str | None:
    return None if facts["dim"] == -1 else "it knows the last axis only"


@candidate("softmax", devices=("cuda",), facts=_last_axis)
class LigerSoftmax(Softmax):
    """``liger_softmax``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _library().liger_softmax(x)


@candidate("gated_mlp", devices=("cuda",))
class LigerMLP(LlamaMLP):
    """Torch's products around Liger's activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assemble(self, (LigerSiluAndMul, LigerGeluAndMul))
