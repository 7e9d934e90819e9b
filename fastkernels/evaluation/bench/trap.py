"""Does a timed batch read its inputs call by call? In batches that are not scored, inputs to come change meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.result import Failure

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.timed import Bed

ATTEMPTS, ENOUGH = 4, 2
LEAST_CALLS, WINDOW = 8, 1024  # calls of a batch; of those the ones whose inputs change
LOOKED_AT = (2, 3, 4, 5, 8, 16, 32, 64, 128, 256)  # calls after the one that was running when the change was complete
LONGEST_SECONDS = 10.0


class Change:
    """Writes other contents once the child's position has reached ``at``; a thread, while the batch runs."""

    def __init__(self, bed: Bed, at: int, write: Callable[[], None]) -> None:
        self._bed, self._at, self._write = bed, at, write
        assert bed.counter.buffer is not None
        self._counter = memoryview(bed.counter.buffer).cast("q")
        self._counter[0] = -1
        self._complete = -1
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        while self._counter[0] < self._at:
            if time.monotonic() > deadline:
                return
        self._write()
        if self._bed.site.device.type == "cuda":
            torch.cuda.synchronize(self._bed.site.device)
        self._complete = self._counter[0]

    def complete(self) -> int:
        """Which call was the running one once everything was written: later ones had not begun. -1: never."""
        self._thread.join()
        return self._complete


def trapped(bed: Bed, name: str) -> list[Failure]:
    """Changes the inputs of calls that have not begun, in the same buffers, in the middle of a batch.

    What an honest call returns is that of the new contents; what was read ahead is that of the old. It must be seen
    in two batches.
    """
    if bed.ring.slots < LEAST_CALLS or bed.site.task.mutates or bed.mode != "eager":
        return []
    seen = 0
    for attempt in range(ATTEMPTS):
        if attempt - seen >= ATTEMPTS - ENOUGH:
            return []
        if _read_ahead(bed, name):
            seen += 1
        if seen == ENOUGH:
            detail = "outputs are those of inputs from before they changed in the same buffers, ahead of their calls"
            return [Failure(code="STALE_OUTPUT", where="timed calls", detail=detail)]
    return []


def _read_ahead(bed: Bed, name: str) -> bool:
    calls, runner = bed.ring.slots, bed.runners[name]
    bed.renew()
    order = bed.chance.sample(range(calls), calls)
    at = bed.chance.randrange(calls // 4, calls // 2)
    changed = range(at + 1, min(at + 1 + WINDOW, calls))
    old = {p: bed.ring.contents(order[p]) for p in changed}
    change = Change(bed, at, bed.ring.prepared([order[p] for p in changed]))
    try:
        runner.timed(order)
    finally:
        running = change.complete()
    runner.stop()
    positions = [running + n for n in LOOKED_AT if running >= 0 and running + n in changed]
    new = {p: bed.ring.contents(order[p]) for p in positions}
    collected = runner.collect(order, bed.site.outputs_for(runner, [bed.like] * calls))
    runner.stop()
    return any(
        _is(bed, old[p], got) and not _is(bed, new[p], got) for p in positions for got in [collected.pick(p).outputs]
    )


def _is(bed: Bed, arguments: Any, got: Any) -> bool:
    """Whether the outputs are right for these arguments."""
    drawn = bed.site.referee.expect(arguments, name="a call in the batch")
    return drawn is not None and not judge_drawn(
        drawn, got, None, task=bed.site.task, dtype=bed.site.dtype
    ).failures  # fmt: skip
