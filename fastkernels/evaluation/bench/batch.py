"""In a child: the calls of a timed batch, one after the other, each position told before its call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import starmap
from typing import Any

import torch


def counted(
    slots: list[tuple[Any, ...]], counter: Any, pace: Callable[[], None] | None = None
) -> Iterator[tuple[Any, ...]]:
    """Each slot's arguments, after its position was written to the shared ``counter``, and ``pace`` called before that.

    A generator's frame is in no traceback: what comes next is not to be seen from a call.
    """
    slots.reverse()
    position = 0
    while slots:
        if pace is not None:
            pace()
        counter[0] = position
        position += 1
        yield slots.pop()
    counter[0] = position


def batch(
    forward: Callable[..., Any], coming: Iterator[tuple[Any, ...]], synchronize: Callable[[], None] | None
) -> tuple[list[Any], float | None]:
    """The outputs of all calls, and the seconds between CUDA events around them; no device where ``synchronize``, which
    waits for it, is None."""
    if synchronize is None:
        return list(starmap(forward, coming)), None
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    outputs = list(starmap(forward, coming))
    end.record()
    synchronize()
    return outputs, start.elapsed_time(end) / 1e3
