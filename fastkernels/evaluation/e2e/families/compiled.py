"""How the families enter the modes of torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.e2e.families.family import Mode

# Workloads differ in shape and shapes are not dynamic, so one forward has a graph for each: more than the default 8.
SHAPES = 64


def compile_model(model: nn.Module, *, mode: Mode, backend: str) -> Callable[..., Any]:
    """The model, called as ``mode`` says: itself in eager mode, else compiled as one graph for each shape.

    ``mode_step`` goes before each call of a compiled model. Raises torch._dynamo's own errors at the first call: on a
    graph break, for ``fullgraph`` is asked.

    Args:
        backend: of torch.compile; ignored in eager mode.
    """
    if mode == "eager":
        return model
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, SHAPES)
    return torch.compile(
        model, mode=None if mode == "default" else mode, backend=backend, fullgraph=True, dynamic=False
    )


def mode_step(mode: Mode) -> None:
    """Says that outputs of earlier calls are no longer needed: graphs of ``reduce-overhead`` share their memory."""
    if mode != "eager":
        torch.compiler.cudagraph_mark_step_begin()
