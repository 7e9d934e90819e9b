"""What a router returns, found by asking it: a bfloat16 image of the module without values runs on three tokens."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """What a router returns: where logits, weights and ids stand, and in which dtypes for bfloat16 tokens."""

    order: tuple[int, int, int]
    top_k: int
    float_logits: bool
    float_weights: bool


def layout_of(module: nn.Module, experts: int, width: int, takes: int) -> Layout | None:
    """Asks the module itself, on three bfloat16 tokens without values; None where it returns something else."""
    bias = (torch.empty(experts, device="meta"),)[: takes - 1]
    out: Any = None
    for shape in ((3, width), (1, 3, width)):
        tokens = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        try:
            with torch.no_grad():
                out = type(module).forward(without_values(module), tokens, *bias)
            break
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
            continue
    if not (isinstance(out, tuple) and len(out) == 3 and all(isinstance(t, torch.Tensor) for t in out)):
        return None
    ids = [i for i, t in enumerate(out) if t.dtype == torch.int64]
    if len(ids) != 1 or out[ids[0]].dim() != 2:
        return None
    top_k = out[ids[0]].shape[1]
    floats = [i for i in range(3) if i != ids[0]]
    logits = next((i for i in floats if out[i].shape == (3, experts)), None)
    if logits is None or any(len(t) != 3 for t in out):
        return None
    weights = next(i for i in floats if i != logits)
    dtypes = out[logits].dtype, out[weights].dtype
    if out[weights].shape[1:] != (top_k,) or not set(dtypes) <= {torch.float32, torch.bfloat16}:
        return None
    wide = [d == torch.float32 for d in dtypes]
    return Layout((logits, weights, ids[0]), top_k, *wide)


def without_values(module: nn.Module) -> nn.Module:
    """A bfloat16 image of a module on the meta device: shares everything with it but tensors, hooks and patches."""
    image = object.__new__(type(module))
    image.__dict__.update({k: v for k, v in vars(module).items() if k != "forward"})
    image.__dict__["_parameters"] = {
        n: None if p is None else torch.empty_like(p, dtype=torch.bfloat16, device="meta", requires_grad=False)
        for n, p in module._parameters.items()
    }
    image.__dict__["_buffers"] = {n: None if b is None else b.to("meta") for n, b in module._buffers.items()}
    image.__dict__["_modules"] = {n: None if c is None else without_values(c) for n, c in module._modules.items()}
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        image.__dict__[hooks] = OrderedDict()
    return image
