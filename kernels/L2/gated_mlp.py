"""Gated MLP: one product for gate and up, the activation in one pass, the product down."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L2 import gated_mlp


@candidate("gated_mlp")
class LlamaMLP(gated_mlp.LlamaMLP):
    """Gate and up are one storage, so this reads the input once; the activation is the part in force."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._modules  # a plain dict: nn.Module's own look-up costs a microsecond a name
        return _project(parts["down_proj"], parts["act_fn"](_project(parts["gate_up_proj"], x)))


def _project(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    if type(linear) is not Linear:
        return linear(x)
    return F.linear(x, linear.weight, linear.bias)
