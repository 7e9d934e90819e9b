"""Arguments whose rows do not follow each other in memory, as queries cut out of a product with keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

GAP = 16  # elements after each row: whole lines stay aligned as they were
NARROW = 16  # elements of a row: a gate's few numbers, which nothing hands over with gaps


def strided(arguments: Any) -> Any | None:
    """The same values with a gap after each row, NaN in it; None where no argument has several rows of numbers.

    A row is what one step along the first axis spans.

    >>> (x,) = strided((torch.ones(2, 4, 16),))
    >>> x.shape, x.stride(), bool((x == 1).all())
    (torch.Size([2, 4, 16]), (80, 16, 1), True)
    """
    changed = False

    def one(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal changed
        if not tensor.is_floating_point() or tensor.dim() < 2 or not tensor.numel() or not tensor.is_contiguous():
            return tensor.clone()
        rows, width = len(tensor), tensor.numel() // len(tensor)
        if rows == 1 or tensor.shape[-1] < NARROW:
            return tensor.clone()
        changed = True
        wider = tensor.new_full((rows, width + GAP), float("nan"))
        return wider[:, :width].copy_(tensor.view(rows, width)).unflatten(1, tensor.shape[1:])

    found = pytree.tree_map_only(torch.Tensor, one, arguments)
    return found if changed else None
