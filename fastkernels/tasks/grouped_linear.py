"""One product for each group of rows, as a mixture of experts needs it, in a form that traces whole."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

ALIGNMENT_BYTES = 16  # of every row that torch's grouped product reads


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of ``x`` up to ``ends[0]`` times ``weight[0].T``, the next up to ``ends[1]`` times ``weight[1].T``, ...

    One grouped product without a look at ``ends`` where torch has one; else a loop over the groups, which in a trace
    is one operator, since it reads ``ends`` on the host.

    Args:
        x: (rows, K), sorted by group.
        weight: (groups, N, K).
        ends: (groups,), integers.
    """
    traced = torch.compiler.is_compiling() or isinstance(x, FakeTensor)
    dtypes = (torch.bfloat16,) if traced else (torch.bfloat16, torch.float16, torch.float32)
    widths = (x.shape[-1], weight.shape[1])
    aligned = all(w * x.element_size() % ALIGNMENT_BYTES == 0 for w in widths)
    old = x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0)
    if hasattr(F, "grouped_mm") and len(x) and x.dtype in dtypes and x.dtype == weight.dtype and aligned and not old:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    return torch.ops.fastkernels_tasks.grouped_linear(x, weight, ends) if traced else _by_group(x, weight, ends)


def _by_group(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    out, start = x.new_empty(len(x), weight.shape[1]), 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            out[start:end] = F.linear(x[start:end], weight[group])
        start = end
    return out


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    of_x, of_weight, start = torch.zeros_like(x), torch.zeros_like(weight), 0
    for group, end in enumerate(ends.tolist()):
        of_x[start:end] = grad[start:end] @ weight[group]
        of_weight[group] = grad[start:end].T @ x[start:end]
        start = end
    return of_x, of_weight


@functools.cache
def register_grouped_linear() -> None:
    """Registers the operator that stands in traces; once a process, before the first trace."""
    unsafe = (torch.Tag.cudagraph_unsafe,)
    name = "fastkernels_tasks::grouped_linear"
    op = torch.library.custom_op(name, _by_group, mutates_args=(), tags=unsafe)
    backward = torch.library.custom_op(f"{name}_gradients", _gradients, mutates_args=(), tags=unsafe)

    @op.register_fake
    def _(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape[0], weight.shape[1])  # len() would make a number of it

    @backward.register_fake
    def _(
        grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty_like(x), torch.empty_like(weight)

    def keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    op.register_autograd(lambda ctx, grad: (*backward(grad, *ctx.saved_tensors), None), setup_context=keep)
