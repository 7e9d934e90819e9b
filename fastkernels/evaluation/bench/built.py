"""In a child: a module over the parent's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.patches.build import Resolver, substitute


def built(
    cls: type[nn.Module],
    init: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    parameters: Mapping[str, torch.Tensor],
    within: str = "",
    resolve: Resolver | None = None,
) -> tuple[nn.Module, list[str]]:
    """``cls(**init)`` on ``device`` in ``dtype``, whose parameters are the tensors given, not copies of them.

    Task interfaces that it holds become the candidates that ``resolve`` names, as where it is deployed; those of the
    task ``within``, which it implements itself, stay. Also returns the tasks of those that stand inside it then.

    Raises:
        ValueError: it has other parameters, or of other shapes.
    """
    with torch.device(device):
        module = cls(**init)
    placed = []
    if resolve is not None:
        placed = substitute(module, resolve, device=device, within=frozenset({within}))
    module = module.to(dtype).eval()
    own = dict(module.named_parameters())
    if set(own) != set(parameters):
        raise ValueError(f"parameters {sorted(own)}, the task has {sorted(parameters)}")
    for name, value in parameters.items():
        if own[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(own[name].shape)}, the task's {tuple(value.shape)}")
        own[name].data = value
        own[name].requires_grad_(False)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the constructor made, in float32
    return module, sorted({candidate.task.name for _, candidate in placed})
