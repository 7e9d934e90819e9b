"""Base class of task interfaces: an nn.Module that remembers how it was built, so a candidate can take its place."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class Interface(nn.Module):
    """An interface module; its plain-PyTorch ``forward`` is the reference semantics of a task.

    The constructor call is kept in ``constructed_with``: wherever a reference or a candidate builds an
    interface inside itself, a candidate of that task can be built from the same call and put in its place.

    >>> from fastkernels.tasks.L1.rms_norm import RMSNorm
    >>> RMSNorm(8, eps=1e-5).constructed_with
    ((8,), {'eps': 1e-05})
    """

    constructed_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self.__dict__["constructed_with"] = (args, kwargs)
        return self


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a reference accumulates: float32 for narrower inputs, float64 stays float64."""
    return torch.promote_types(x.dtype, torch.float32)
