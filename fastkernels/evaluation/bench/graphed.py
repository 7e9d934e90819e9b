"""Calls captured as CUDA graphs, one for each slot: what a serving engine replays in decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WARM_CALLS = 3


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One captured call: calling it replays the graph and returns the graph's own outputs."""

    graph: torch.cuda.CUDAGraph
    arguments: tuple[Any, ...]
    outputs: Any

    def __call__(self) -> Any:
        self.graph.replay()
        return self.outputs


def captured(forward: Callable[..., Any], slots: Sequence[tuple[Any, ...]]) -> list[Replay]:
    """A graph for each slot's arguments, in one memory pool.

    Raises:
        RuntimeError: the implementation cannot be captured: it synchronises, or allocates what a graph cannot keep.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_CALLS):
            forward(*slots[0])
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    found: list[Replay] = []
    pool = torch.cuda.graph_pool_handle()
    for arguments in slots:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = forward(*arguments)
        found.append(Replay(graph=graph, arguments=arguments, outputs=outputs))
    return found
