"""Does every call of a timed batch do its own work, when it is its turn? In batches that are not scored, the child is
halted in the middle, and the inputs of calls before and after that point change."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastkernels.evaluation.bench import process
from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.pace import Pace
from fastkernels.evaluation.bench.result import Failure

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.collected import Collected
    from fastkernels.evaluation.bench.inputs import Referee
    from fastkernels.evaluation.bench.runner import Runner
    from fastkernels.evaluation.bench.timed import Bed

ENOUGH = 2  # batches in which something must be seen
MISSES, CUDA_MISSES = 3, 3  # batches in which it was not, until there is nothing to be seen
LEAST_CALLS = 8  # of a batch
TOUCHES = 24  # of a batch that is not halted
AHEAD = (1, 2, 3, 5, 8, 16, 32, 64, 128, 256)  # calls after the one that was running
BEHIND = (1, 2, 4, 8, 32)  # calls before it
FAR_AHEAD = (16, 32, 64)  # calls that do not begin while their inputs are written, mostly
LATER = (2, 3, 5, 9, 17)  # calls after the one that was running when parameters had changed
LONGEST_SECONDS, LOOK_SECONDS = 10.0, 5e-5
# What the device may still have to do for a child that stands still: what was launched of the batch.
DRAIN_SHARE, DRAIN_SECONDS = 2.0, 0.05
DETAILS = {
    "STALE_OUTPUT": "outputs are those of inputs or parameters from before they changed in the same buffers",
    "TIMED_WRONG": "outputs are those of inputs that changed after their calls: the work was put off",
    "CLOCK_MISMATCH": "most calls took next to no time and a few took that of many: calls were not made one by one",
    "TAMPERED": "the position in the batch was not told: the loop that makes the calls is not the harness's",
}


class Halt:
    """Halts the child once its position in the batch has reached ``at``, runs ``act(position)`` and lets it go on; a
    thread, while the batch runs. Calls before the position were done by then, calls after it had not begun.

    ``meanwhile`` runs at each of some earlier ``places``, in order, while the child goes on: no pause tells it when.
    It is given what tells the position."""

    def __init__(
        self,
        bed: Bed,
        runner: Runner,
        at: int,
        act: Callable[[int], None] = lambda _: None,
        *,
        places: Sequence[int] = (),
        meanwhile: Callable[[Callable[[], int]], None] = lambda _: None,
        drain: float = 0.0,
    ) -> None:
        self._at, self._act, self._pid, self._drain = at, act, runner.pid, drain
        self._places, self._meanwhile = places, meanwhile
        assert bed.counter.buffer is not None
        self._counter = memoryview(bed.counter.buffer).cast("q")
        self._counter[0] = -1
        self.pace = Pace()
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for place in self._places:
                if self._reaches(place):
                    self._meanwhile(lambda: self._counter[0])
            if self._reaches(self._at):
                process.stop(self._pid)
                time.sleep(self._drain)  # what it had launched goes on without it
                self._act(self._counter[0])
        except BaseException as error:  # noqa: BLE001 - raised where the batch ends
            self._error = error
        finally:
            process.resume(self._pid)

    def _reaches(self, position: int) -> bool:
        """Waits until the child is there; False where it does not come so far."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while self.pace.look(self._counter) < position:
            if self._over or time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)  # to look without a pause would take a processor from the child
        return True

    def end(self) -> int:
        """To be called when the batch is over: the position that was told last. Raises what ``act`` raised."""
        self._over = True
        self._thread.join()
        if self._error is not None:
            raise self._error
        return int(self._counter[0])


@dataclass(kw_only=True)
class _Change:
    """What changed while the child was halted, by position: the code of outputs that do not go with it, and contents
    before and after. ``later`` are those of calls that began after the parameters had changed, before it was halted."""

    halted: int | None = None
    codes: dict[int, str] = field(default_factory=dict)
    old: dict[int, Any] = field(default_factory=dict)
    new: dict[int, Any] = field(default_factory=dict)
    later: dict[int, Any] = field(default_factory=dict)


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
        halt = Halt(bed, runner, calls)
        try:
            bed.timed(trusted, bed.order(calls))
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
        """Codes of what one batch shows: halted once, or, on the CPU in every second, touched without a pause."""
        touched = self.bed.may_scribble and not self._on_device and self._sprung % 2 == 0
        return self._touched() if touched else self._halted()

    def _halted(self) -> set[str]:
        """Codes of what one batch shows in the middle of which the child is halted, and inputs change."""
        bed, runner, calls = self.bed, self.bed.runners[self.name], self.bed.ring.slots
        if self._on_device and not self._wall:
            self._wall = bed.batch(self.name, calls).wall
        bed.renew()
        order, change = bed.order(calls), _Change()
        at = bed.chance.randrange(calls // 8, 7 * calls // 8)
        halt = Halt(
            bed,
            runner,
            at,
            lambda position: self._change(change, order, position),
            places=[at // 2],
            meanwhile=lambda told: self._refresh(change, order, told),
            drain=self._drain,
        )
        # Of long calls a device is given many before it does the first: half of the batches go by its pace. The child
        # can tell those, so the others do not.
        told, collected = self._ran(order, halt, paced=self._on_device and self._sprung % 2 == 1)
        found = set() if told == calls else {"TAMPERED"}
        if not self._on_device and halt.pace.in_bursts(self._usual):
            found.add("CLOCK_MISMATCH")
        return found | self._shown(change, collected)

    def _touched(self) -> set[str]:
        """Codes of what one batch shows in which, again and again, the inputs of a call that is done become useless,
        and those of a call to come another's."""
        bed, runner, calls = self.bed, self.bed.runners[self.name], self.bed.ring.slots
        bed.renew()
        order = bed.order(calls)
        touched: dict[int, tuple[str, Any]] = {}

        def touch(told: Callable[[], int]) -> None:
            position = told()
            behind, ahead = position - bed.chance.choice(BEHIND), position + bed.chance.choice(FAR_AHEAD)
            if not 0 <= behind < position < calls or behind in touched:
                return
            contents = bed.ring.contents(order[behind])
            bed.ring.scribble(order[behind])
            touched[behind] = "TIMED_WRONG", contents
            if ahead < calls and ahead not in touched:
                bed.ring.write(order[ahead], contents)
                # Where the call may have begun meanwhile, nobody knows what it should return.
                touched[ahead] = "STALE_OUTPUT" if ahead > told() + 1 else "", contents

        places = sorted(bed.chance.sample(range(calls), min(TOUCHES, calls)))
        halt = Halt(bed, runner, calls, places=places, meanwhile=touch)
        told, collected = self._ran(order, halt)
        wrong = {
            code for position, (code, contents) in touched.items()
            if code and self._is(contents, collected.pick(position).outputs) is False
        }  # fmt: skip
        return wrong if told == calls else wrong | {"TAMPERED"}

    def _ran(self, order: list[int], halt: Halt, *, paced: bool = False) -> tuple[int, Collected]:
        """The position that was told last in a batch during which ``halt`` is at work, and the batch's outputs."""
        bed, runner = self.bed, self.bed.runners[self.name]
        try:
            bed.timed(self.name, order, paced=paced)
        finally:
            told = halt.end()
        runner.stop()
        collected = bed.collected(self.name, order)
        runner.stop()
        return told, collected

    @property
    def _on_device(self) -> bool:
        return self.bed.site.device.type == "cuda"

    @property
    def _drain(self) -> float:
        return DRAIN_SHARE * self._wall + DRAIN_SECONDS if self._on_device else 0.0

    def _refresh(self, change: _Change, order: Sequence[int], told: Callable[[], int]) -> None:
        """New values in a part of each parameter; notes down contents of calls that begin after that."""
        bed = self.bed
        bed.refresh()
        now = told()
        change.later = {p: bed.ring.contents(order[p]) for n in LATER if 0 <= (p := now + n) < len(order)}

    def _change(self, change: _Change, order: Sequence[int], position: int) -> None:
        """New contents for all calls but the one at ``position``, while the child stands still."""
        bed, calls = self.bed, len(order)
        change.halted = position
        change.codes |= {position + n: "STALE_OUTPUT" for n in AHEAD if 0 <= position + n < calls}
        if bed.may_scribble:  # else outputs may be the inputs themselves
            change.codes |= {position - n: "TIMED_WRONG" for n in BEHIND if 0 <= position - n < calls}
        change.old |= {p: bed.ring.contents(order[p]) for p in change.codes}
        # A running call's inputs stay whole.
        bed.ring.renew(but=order[position] if 0 <= position < calls else None)
        change.new |= {p: bed.ring.contents(order[p]) for p in change.codes}
        bed.synchronize()

    def _shown(self, change: _Change, collected: Collected) -> set[str]:
        """Codes of outputs that go with the wrong contents or parameters."""
        found = set()
        for position, code in change.codes.items():
            got = collected.pick(position).outputs
            pair = change.old[position], change.new[position]
            wrong, right = pair if code == "STALE_OUTPUT" else reversed(pair)
            if self._is(wrong, got) and self._is(right, got) is False:
                found.add(code)
        for position, contents in change.later.items():
            reached = change.halted is None or position < change.halted
            if reached and self._is(contents, collected.pick(position).outputs) is False:
                found.add("STALE_OUTPUT")
        return found

    def _is(self, arguments: Any, got: Any, *, referee: Referee | None = None) -> bool | None:
        """Whether the outputs are right for these arguments and the present parameters, or those of ``referee``; None
        where nobody knows."""
        site = self.bed.site
        drawn = (referee or site.referee).expect(arguments, name="a call in the batch")
        if drawn is None:
            return None
        return not judge_drawn(drawn, got, None, task=site.task, dtype=site.dtype).failures
