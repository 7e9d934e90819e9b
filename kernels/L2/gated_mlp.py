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

    def accumulate(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + forward(x)``, written to ``residual``: the product down adds while it stores its tiles."""
        parts = self._modules
        down = parts["down_proj"]
        if not x.is_cuda or type(down) is not Linear or down.bias is not None or torch.is_grad_enabled():
            return residual + LlamaMLP.forward(self, x)  # not self.forward: that one is counted
        activated = parts["act_fn"](_project(parts["gate_up_proj"], x))
        width = residual.shape[-1]
        residual.view(-1, width).addmm_(activated.view(-1, activated.shape[-1]), down.weight.t())
        return residual


def _project(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    if type(linear) is not Linear:
        return linear(x)
    return F.linear(x, linear.weight, linear.bias)
