"""flash-linear-attention's Triton kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.rms_norm_gated import RMSNormGated


def _norm_first(facts: Mapping[str, Any]) -> str | None:
    return None if facts["norm_before_gate"] else "it gates after the norm"


@candidate("rms_norm_gated", devices=("cuda",), facts=_norm_first)
class FlaRMSNormGated(RMSNormGated):
    """``rms_norm_gated``."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        from fla.modules.fused_norm_gate import rms_norm_gated

        return rms_norm_gated(x, z, self.weight, None, activation=self.activation, eps=self.eps)
