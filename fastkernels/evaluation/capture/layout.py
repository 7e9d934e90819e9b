"""Gives a tensor the strides that it was captured with."""

from __future__ import annotations

import torch

MOST_SPREAD = 16  # elements of memory that an element of the view may take


def laid_out(tensor: torch.Tensor, stride: tuple[int, ...] | None) -> torch.Tensor:
    """The same values with ``stride``; contiguous where that is None, spreads them too wide, or elements would share
    memory in a way that no expansion has.

    >>> laid_out(torch.ones(2, 3), (1, 2)).stride(), laid_out(torch.ones(2, 3).fill_(7), (0, 1)).stride()
    ((1, 2), (0, 1))
    """
    if stride is None or tensor.stride() == stride:
        return tensor.contiguous() if stride is None else tensor
    if not tensor.numel() or any(s < 0 for s in stride):
        return tensor.contiguous()
    base = tensor
    for dim, (size, step) in enumerate(zip(tensor.shape, stride, strict=True)):
        if step == 0 and size > 1:
            base = base.narrow(dim, 0, 1)
    expanded = base.shape != tensor.shape
    if (expanded and not torch.equal(base.expand(tensor.shape), tensor)) or _overlaps(base.shape, stride):
        return tensor.contiguous()
    needed = 1 + sum((size - 1) * step for size, step in zip(base.shape, stride, strict=True))
    if needed > MOST_SPREAD * base.numel():  # a view into a cache, say: not the whole of it
        return tensor.contiguous()
    room = torch.zeros(needed, dtype=tensor.dtype, device=tensor.device)
    room.as_strided(base.shape, stride).copy_(base)
    return room.as_strided(tensor.shape, stride)


def _overlaps(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether two elements may share memory: sorted by stride, each must step over all within it."""
    reach = 0
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1):
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False
