"""Which inputs turn on a rounding: where experts are chosen, and two of them are as good."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.tasks import Task
from fastkernels.tasks.registry import by_interface

TIE = 4 * torch.finfo(torch.float32).eps  # nearer than this, softmax in float32 may make two logits one weight
UNDERFLOWN = 1e-30  # a weight below it was chosen among equals: all of them are nothing in float32


def chooses(task: Task, reference: nn.Module) -> bool:
    """Whether the result can turn on a rounding: a choice of experts is made from computed values."""
    tasks = by_interface()
    chosen = [t for m in reference.modules() if (t := tasks.get(type(m))) is not None]
    return any(t.family == "moe" and t.name != "fused_experts" for t in (task, *chosen))


def tied(weights: torch.Tensor) -> bool:
    """Whether weights of chosen experts say that the choice was one among equals: underflown, or twice the same.

    >>> tied(torch.tensor([[0.5, 0.3]])), tied(torch.tensor([[1.0, 0.0]])), tied(torch.tensor([[0.5, 0.5]]))
    (False, True, True)
    """
    ordered = weights.sort(dim=-1).values if weights.dim() else weights.reshape(1)
    return bool((ordered.abs() < UNDERFLOWN).any()) or bool((ordered[..., 1:] == ordered[..., :-1]).any())


def moved(arguments: Any, size: float, *, tie: float, seed: int) -> Any:
    """Float64 ``arguments``, each number off by up to ``size`` of itself.

    With ``tie`` also by as much of their rms, and by ``tie`` itself, so that near and equal ones change order.
    """

    def one(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        generator = torch.Generator(t.device).manual_seed(seed + t.numel())
        noise = 2 * torch.rand(t.shape, generator=generator, dtype=t.dtype, device=t.device) - 1
        if not tie or not t.numel():
            return t * (1 + size * noise)
        return t * (1 + size * noise) + (tie + size * t.square().mean().sqrt()) * noise.flip(-1 if t.dim() else ())

    return pytree.tree_map_only(torch.Tensor, one, arguments)
