"""The tensors among whatever a task is called with or returns."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value, in order.

    >>> tensors((torch.ones(2), None, [torch.zeros(()), 3]))
    [tensor([1., 1.]), tensor(0.)]
    """
    return [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def leading(value: Any) -> int | None:
    """Size of the first tensor's first axis; None without one.

    >>> leading((None, torch.ones(3, 4))), leading(())
    (3, None)
    """
    return next((t.shape[0] for t in tensors(value) if t.dim()), None)
