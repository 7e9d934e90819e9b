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
from fastkernels.evaluation.bench.pace import Pace
from fastkernels.evaluation.bench.result import Failure

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.runner import Runner
    from fastkernels.evaluation.bench.timed import Bed

ENOUGH = 2  # batches in which something must be seen
MISSES, CUDA_MISSES = 2, 3  # batches in which it was not, until there is nothing to be seen
LEAST_CALLS = 8  # of a batch
AHEAD = (1, 2, 3, 5, 8, 16, 32, 64, 128, 256)  # calls after the one that was running
BEHIND = (1, 2, 4, 8, 32)  # calls before it
LONGEST_SECONDS, LOOK_SECONDS = 10.0, 5e-5
# What the device may still have to do for a child that stands still: what was launched of the batch.
DRAIN_SHARE, DRAIN_SECONDS = 2.0, 0.05
DETAILS = {
    "STALE_OUTPUT": "outputs are those of inputs from before they changed in the same buffers, ahead of their calls",
    "TIMED_WRONG": "outputs are those of inputs that changed after their calls: the work was put off",
    "CLOCK_MISMATCH": "most calls took next to no time and a few took that of many: calls were not made one by one",
    "TAMPERED": "the position in the batch was not told: the loop that makes the calls is not the harness's",
}


class Halt:
    """Halts the child once its position in the batch has reached ``at``, runs ``act(position)`` and lets it go on; a
    thread, while the batch runs. Calls before the position were done by then, calls after it had not begun."""

    def __init__(self, bed: Bed, runner: Runner, at: int, act: Callable[[int], None], *, drain: float = 0.0) -> None:
        self._at, self._act, self._pid, self._drain = at, act, runner.pid, drain
        assert bed.counter.buffer is not None
        self._counter = memoryview(bed.counter.buffer).cast("q")
        self._counter[0] = -1
        self.pace = Pace()
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        while self.pace.look(self._counter) < self._at:
            if self._over or time.monotonic() > deadline:
                return
            time.sleep(LOOK_SECONDS)  # to look without a pause would take a processor from the child
        process.stop(self._pid)
        time.sleep(self._drain)  # what it had launched goes on without it
        try:
            self._act(self._counter[0])
        except BaseException as error:  # noqa: BLE001 - raised where the batch ends
            self._error = error
        finally:
            process.resume(self._pid)

    def end(self) -> int:
        """To be called when the batch is over: the position that was told last. Raises what ``act`` raised."""
        self._over = True
        self._thread.join()
        if self._error is not None:
            raise self._error
        return int(self._counter[0])


class Trap:
    """Batches of the contestant ``name`` in the middle of which inputs change in the same buffers.

    What an honest call returns is that of the contents at its turn. STALE_OUTPUT: what was read ahead is that of the
    contents before. TIMED_WRONG: what was put off is that of the contents after. CLOCK_MISMATCH, on the CPU: positions
    pass in bursts, where calls are long enough to see that. Each must be seen in two batches.
    """

    def __init__(self, bed: Bed, name: str) -> None:
        self.bed, self.name = bed, name
        self.possible = bed.ring.slots >= LEAST_CALLS and not bed.site.task.mutates and bed.mode != "compiled"
        self._seen: Counter[str] = Counter()
        self._sprung = 0
        self._wall = self._usual = 0.0

    @property
    def wanted(self) -> bool:
        """Whether there is something to find out."""
        most = max(self._seen.values(), default=0)
        misses = CUDA_MISSES if self.bed.site.device.type == "cuda" else MISSES
        return self.possible and most < ENOUGH and self._sprung - most < misses

    def spring(self) -> None:
        """One batch."""
        self._sprung += 1
        self._seen.update(self._caught())

    def watch(self, trusted: str) -> None:
        """A batch of a contestant that makes its calls one by one. On CUDA positions say when calls were launched."""
        bed = self.bed
        if bed.site.device.type == "cuda":
            return
        calls, runner = bed.ring.slots, bed.runners[trusted]
        bed.renew()
        halt = Halt(bed, runner, calls, lambda position: None)
        try:
            runner.timed(bed.order(calls))
        finally:
            halt.end()
        runner.stop()
        self._usual = halt.pace.usual

    def failures(self) -> list[Failure]:
        """What was seen often enough; the first of them."""
        where = f"timed calls, {self.bed.mode}"
        found = [code for code in DETAILS if self._seen[code] >= ENOUGH]
        return [Failure(code=code, where=where, detail=DETAILS[code]) for code in found[:1]]

    def _caught(self) -> set[str]:
        """Codes of what one batch shows."""
        bed = self.bed
        calls, runner = bed.ring.slots, bed.runners[self.name]
        on_device = bed.site.device.type == "cuda"
        if on_device and not self._wall:
            self._wall = bed.batch(self.name, calls).wall
        bed.renew()
        order = bed.order(calls)
        old: dict[int, Any] = {}
        new: dict[int, Any] = {}
        codes: dict[int, str] = {}

        def change(position: int) -> None:
            codes.update({position + n: "STALE_OUTPUT" for n in AHEAD if 0 <= position + n < calls})
            if bed.may_scribble:  # else outputs may be the inputs themselves
                codes.update({position - n: "TIMED_WRONG" for n in BEHIND if 0 <= position - n < calls})
            old.update({p: bed.ring.contents(order[p]) for p in codes})
            # A running call's inputs stay whole.
            bed.ring.renew(but=order[position] if 0 <= position < calls else None)
            new.update({p: bed.ring.contents(order[p]) for p in codes})
            bed.synchronize()

        # Of long calls a device is given many before it does the first: half of the batches go by its pace. The child
        # can tell those, so the others do not.
        paced = on_device and self._sprung % 2 == 1
        drain = DRAIN_SHARE * self._wall + DRAIN_SECONDS if on_device else 0.0
        halt = Halt(bed, runner, bed.chance.randrange(calls // 4, calls // 2), change, drain=drain)
        try:
            runner.timed(order, paced=paced)
        finally:
            told = halt.end()
        runner.stop()
        collected = runner.collect(order, bed.site.outputs_for(runner, [bed.like] * calls))
        runner.stop()
        found = set() if told == calls else {"TAMPERED"}
        if not on_device and halt.pace.in_bursts(self._usual):
            found.add("CLOCK_MISMATCH")
        for position, code in codes.items():
            got = collected.pick(position).outputs
            wrong, right = (old, new) if code == "STALE_OUTPUT" else (new, old)
            if self._is(wrong[position], got) and not self._is(right[position], got):
                found.add(code)
        return found

    def _is(self, arguments: Any, got: Any) -> bool:
        """Whether the outputs are right for these arguments."""
        site = self.bed.site
        drawn = site.referee.expect(arguments, name="a call in the batch")
        if drawn is None:
            return False
        return not judge_drawn(drawn, got, None, task=site.task, dtype=site.dtype).failures
