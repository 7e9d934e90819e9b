"""Calls captured as CUDA graphs, one for each slot: what a serving engine's decode step is made of."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WARM_CALLS = 3


@dataclass(frozen=True, kw_only=True)
class Captured:
    """One captured call, which is never instantiated by itself: its graph writes to ``outputs``."""

    graph: torch.cuda.CUDAGraph
    arguments: tuple[Any, ...]
    outputs: Any


def captured(forward: Callable[..., Any], slots: Sequence[tuple[Any, ...]]) -> list[Captured]:
    """A graph for each slot's arguments, in one memory pool: what they share of it is right in this order only.

    Raises:
        RuntimeError: the implementation cannot be captured: it synchronises, or allocates what a graph cannot keep.
    """
    side = _stream()
    side.wait_stream(torch.cuda.current_stream())
    pool = torch.cuda.graph_pool_handle()
    found = []
    # Not torch.cuda.graph, which waits for the device and empties caches at each of thousands of captures.
    with torch.cuda.stream(side):
        for _ in range(WARM_CALLS):
            forward(*slots[0])
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        for arguments in slots:
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            with contextlib.ExitStack() as failed:
                failed.callback(_abandon, graph)
                outputs = forward(*arguments)
                failed.pop_all()
            graph.capture_end()
            # What was used on several streams is freed when the allocator is next asked for something, but not within
            # a capture: else no call takes over another's memory.
            torch.empty(1, device="cuda")
            found.append(Captured(graph=graph, arguments=arguments, outputs=outputs))
    torch.cuda.synchronize()
    return found


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """Ends a capture whose call has raised: that is what is to be told."""
    with contextlib.suppress(RuntimeError):
        graph.capture_end()


@functools.cache
def _stream() -> torch.cuda.Stream:
    """One for all captures: libraries keep a workspace for each stream that they are called on."""
    return torch.cuda.Stream()
