"""A window in which an SGLang worker replays no graph, and that says which its steps would have run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastkernels.serving.graphs import Graphs

ASKED = ("can_run_graph", "can_run")  # by the model runner, before each step: since 0.5.20, and before
NEXT_SIZE = "SGLang says whether a graph would run, not which one: each step is beside the next captured size"
NO_RUNNER = "this SGLang captures graphs with nothing that fastkernels knows: a replay would not have been seen"


@contextmanager
def eager_window(runner: Any) -> Iterator[Graphs]:
    """Each graph runner of a ``ModelRunner`` says that it cannot run, until the end of the window."""
    told = Graphs()
    put: list[tuple[Any, str]] = []
    for name, held in list(vars(runner).items()):
        verb = next((v for v in ASKED if callable(getattr(held, v, None))), None)
        if "graph_runner" not in name or verb is None or verb in vars(held):
            continue
        by_request = bool(getattr(held, "capture_bs", None))  # a decode's sizes; a prefill's are in tokens
        sizes = sorted((held.capture_bs if by_request else getattr(held, "capture_num_tokens", None)) or [])
        told.sizes = sorted({*told.sizes, *sizes})
        vars(held)[verb] = _refusing(getattr(held, verb), sizes, told, by_request=by_request)
        put.append((held, verb))
    told.unverified = NEXT_SIZE if told.sizes else NO_RUNNER
    try:
        yield told
    finally:
        for held, verb in put:
            vars(held).pop(verb, None)


def _refusing(asked: Callable[..., Any], sizes: list[int], told: Graphs, *, by_request: bool) -> Callable[..., bool]:
    def can_run(batch: Any, *args: Any, **kwargs: Any) -> bool:
        size = batch.batch_size if by_request else len(batch.input_ids)
        if asked(batch, *args, **kwargs):
            told.padded[size] = next((held for held in sizes if held >= size), size)
        elif sizes:
            told.outside.add(size)
        return False

    return can_run
