"""A host around the candidate: neighbours that read its inputs before and after, and its outputs twice.

Alone, an undeclared write or a shared storage does no harm that compiling could show."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.subject import tensors


def _fresh(t: torch.Tensor) -> torch.Tensor:
    """An intermediate of the same values, for the compiler to own and reuse."""
    return t + 0 if t.dtype != torch.bool else t.logical_or(t)


def _read(t: torch.Tensor) -> torch.Tensor:
    return t.logical_not() if t.dtype == torch.bool else t.neg()


class Host(nn.Module):
    """``forward`` returns what the inner module returned, and what its neighbours read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any) -> list[torch.Tensor]:
        given = pytree.tree_map_only(torch.Tensor, _fresh, arguments)
        before = [_read(t) for t in tensors(given)]
        outputs = tensors(self.inner(*given))
        after = [_read(t) for t in tensors(given)]
        consumed = [_read(o) for o in outputs]
        return [*outputs, *consumed, *before, *after]
