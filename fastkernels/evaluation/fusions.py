"""What candidates cost a compiled model in fusions: the same graphs without them, compiled and counted again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastkernels.patches.dispatch import Dispatcher, dispatchers
from fastkernels.runtime.backend import Compiled, recording

# Nothing is timed: no CUDA graphs, which would have to be recorded.
WITHOUT_OPERATORS: Mapping[str, Any] = {"exclude": ["*"], "select": "all", "triton.cudagraphs": False}
ORIGINALS: Mapping[str, Any] = {"exclude": [], "select": "all", "capture_unsafe": [], "triton.cudagraphs": False}


def count_without(
    model: nn.Module, graphs: Sequence[Compiled], compiled: Callable[..., Callable[[], None]], *, inlined: bool
) -> list[dict[str, int]]:
    """The counts of ``GraphReport`` that need another compilation, for each of ``graphs``; none where graphs differ.

    Args:
        compiled: compiles the model anew with options put over the user's, and returns what calls it with each input.
        inlined: candidates' code was traced into ``graphs``: the original modules are compiled too.
    """
    counts: list[dict[str, int]] = [{} for _ in graphs]
    if any(g.present for g in graphs):
        with recording(alone=True) as without:
            compiled(WITHOUT_OPERATORS)()
        if len(without) == len(graphs):
            for found, graph, other in zip(counts, graphs, without, strict=True):
                found.update(_launches(other, "without"))
                found.update(_lost(graph, other))
    if inlined:
        with recording() as unpatched, _originals(model):
            compiled(ORIGINALS)()
        if len(unpatched) == len(graphs):
            for found, other in zip(counts, unpatched, strict=True):
                found.update(_launches(other, "unpatched"))
    return counts


def _launches(graph: Compiled, name: str) -> dict[str, int]:
    if graph.kernels is None or graph.extern_calls is None:
        return {}
    return {f"kernels_{name}": graph.kernels, f"extern_calls_{name}": graph.extern_calls}


def _lost(graph: Compiled, without: Compiled) -> dict[str, int]:
    """An operator stands for its reference's own kernels; what there is beyond them was fused with neighbours."""
    if graph.kernels is None or without.kernels is None or not without.alone.keys() >= graph.present.keys():
        return {}
    own = sum(n * without.alone[name] for name, n in graph.present.items())
    return {"fusions_lost": max(0, graph.kernels + own - without.kernels)}


@contextmanager
def _originals(model: nn.Module) -> Iterator[None]:
    """Every patched module runs its original meanwhile; the patch stays. For code that is traced anew."""
    switched: list[Dispatcher] = []
    for _, forward in dispatchers(model):
        each: object = forward
        while isinstance(each, Dispatcher):
            if not each.identity:
                switched.append(each)
                each.identity = True
            each = each.original
    try:
        yield
    finally:
        for dispatcher in switched:
            dispatcher.identity = False


@torch.no_grad()
def call_each(run: Callable[..., Any], calls: Sequence[Any], *, times: int = 1) -> None:
    """Calls ``run`` with each of ``calls``: a tensor, arguments, or keyword arguments."""
    for call in calls:
        for _ in range(times):
            if isinstance(call, Mapping):
                run(**call)
            else:
                run(*(call if isinstance(call, (tuple, Sequence)) else (call,)))
