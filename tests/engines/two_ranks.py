"""Two processes side by side, each a rank of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any


def in_two_processes(rank_of_two: Callable[..., None], arguments: Sequence[tuple[Any, ...]], *, seconds: float) -> None:
    """Calls ``rank_of_two(rank, *arguments[rank])`` in a new process each; one that takes longer is killed."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank_of_two, args=(i, *given)) for i, given in enumerate(arguments)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
        if process.is_alive():
            process.kill()
