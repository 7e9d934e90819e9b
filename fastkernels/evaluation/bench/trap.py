"""Does every call of a timed batch do its own work, when it is its turn? In batches that are not scored, the child is
halted in the middle, and the inputs of calls before and after that point change."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastkernels.evaluation.bench import process
from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.result import Failure

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.runner import Runner
    from fastkernels.evaluation.bench.timed import Bed

ATTEMPTS, ENOUGH = 4, 2
LEAST_CALLS = 8  # of a batch
AHEAD = (1, 2, 3, 5, 8, 16, 32, 64, 128, 256)  # calls after the one that was running
BEHIND = (1, 2, 4, 8, 32)  # calls before it
LONGEST_SECONDS = 10.0
DETAILS = {
    "STALE_OUTPUT": "outputs are those of inputs from before they changed in the same buffers, ahead of their calls",
    "TIMED_WRONG": "outputs are those of inputs that changed after their calls: the work was put off",
}


class Halt:
    """Halts the child once its position in the batch has reached ``at``, runs ``act(position)`` and lets it go on; a
    thread, while the batch runs. Calls before the position were done by then, calls after it had not begun."""

    def __init__(self, bed: Bed, runner: Runner, at: int, act: Callable[[int], None]) -> None:
        self._at, self._act, self._pid = at, act, runner.pid
        assert bed.counter.buffer is not None
        self._counter = memoryview(bed.counter.buffer).cast("q")
        self._counter[0] = -1
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        while self._counter[0] < self._at:
            if self._over or time.monotonic() > deadline:
                return
        process.stop(self._pid)
        try:
            self._act(self._counter[0])
        except BaseException as error:  # noqa: BLE001 - raised where the batch ends
            self._error = error
        finally:
            process.resume(self._pid)

    def end(self) -> None:
        """To be called when the batch is over. Raises what ``act`` raised."""
        self._over = True
        self._thread.join()
        if self._error is not None:
            raise self._error


def trapped(bed: Bed, name: str) -> list[Failure]:
    """Changes inputs in the same buffers in the middle of a batch.

    What an honest call returns is that of the contents at its turn. STALE_OUTPUT: what was read ahead is that of the
    contents before. TIMED_WRONG: what was put off is that of the contents after. It must be seen in two batches.
    """
    if bed.ring.slots < LEAST_CALLS or bed.site.task.mutates or bed.mode == "compiled":
        return []
    seen: Counter[str] = Counter()
    for attempt in range(ATTEMPTS):
        if attempt - max(seen.values(), default=0) >= ATTEMPTS - ENOUGH:
            return []
        seen.update(_caught(bed, name))
        for code in [c for c, times in seen.items() if times == ENOUGH]:
            return [Failure(code=code, where=f"timed calls, {bed.mode}", detail=DETAILS[code])]
    return []


def _caught(bed: Bed, name: str) -> set[str]:
    """Codes of what one batch shows."""
    calls, runner = bed.ring.slots, bed.runners[name]
    bed.renew()
    order = bed.order(calls)
    old: dict[int, Any] = {}
    new: dict[int, Any] = {}
    codes: dict[int, str] = {}

    def change(position: int) -> None:
        codes.update({position + n: "STALE_OUTPUT" for n in AHEAD if position + n < calls})
        if bed.may_scribble:  # else outputs may be the inputs themselves
            codes.update({position - n: "TIMED_WRONG" for n in BEHIND if 0 <= position - n < calls})
        old.update({p: bed.ring.contents(order[p]) for p in codes})
        bed.ring.renew(but=order[position] if position < calls else None)  # a running call's inputs stay whole
        new.update({p: bed.ring.contents(order[p]) for p in codes})
        bed.synchronize()

    halt = Halt(bed, runner, bed.chance.randrange(calls // 4, calls // 2), change)
    try:
        runner.timed(order, paced=True)
    finally:
        halt.end()
    runner.stop()
    collected = runner.collect(order, bed.site.outputs_for(runner, [bed.like] * calls))
    runner.stop()
    found = set()
    for position, code in codes.items():
        got = collected.pick(position).outputs
        wrong, right = (old, new) if code == "STALE_OUTPUT" else (new, old)
        if _is(bed, wrong[position], got) and not _is(bed, right[position], got):
            found.add(code)
    return found


def _is(bed: Bed, arguments: Any, got: Any) -> bool:
    """Whether the outputs are right for these arguments."""
    drawn = bed.site.referee.expect(arguments, name="a call in the batch")
    if drawn is None:
        return False
    return not judge_drawn(drawn, got, None, task=bed.site.task, dtype=bed.site.dtype).failures
