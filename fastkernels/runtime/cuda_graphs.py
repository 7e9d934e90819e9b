"""What Inductor's CUDA-graph trees did: recordings, launches, and why a graph was not captured.

Compile metrics hold reasons found while compiling; that a graph writes to an input shows at its first call only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SKIPS = ("skipping cudagraph", "disabling cudagraph")  # how torch's texts on a graph that it does not capture begin


def recordings() -> int:
    """CUDA graphs that this thread holds now, on all devices: one for each partition, size and set of addresses."""
    from torch._inductor.cudagraph_trees import get_obj, local

    managers = (container.tree_manager for container in get_obj(local, "tree_manager_containers").values())
    return sum(_nodes(root) for manager in managers if manager is not None for root in manager.get_roots())


def _nodes(node: Any) -> int:
    return 1 + sum(_nodes(child) for children in node.children.values() for child in children)


@contextmanager
def launches() -> Iterator[list[int]]:
    """A list that holds, in the end, how many CUDA graphs were launched meanwhile.

    Raises:
        RuntimeError: a profiler is running already; torch has one at a time.
    """
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as window:
        yield found
        torch.cuda.synchronize()
    found.append(sum(event.name == "cudaGraphLaunch" for event in window.events() or ()))


@contextmanager
def skip_reasons() -> Iterator[list[str]]:
    """A list of why graphs were not captured meanwhile, while compiling or at a call."""
    from torch._inductor.cudagraph_utils import cudagraphs_log

    found: list[str] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(SKIPS):
                found.append(" ".join(record.getMessage().split()))

    handler = Keeps(logging.WARNING)
    cudagraphs_log.addHandler(handler)
    try:
        yield found
    finally:
        cudagraphs_log.removeHandler(handler)
