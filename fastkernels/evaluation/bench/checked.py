"""Does every call of a graph do its own work, when it is its turn? In batches that are not scored, the graph itself
brings each call its contents right before it, and others right after.

Calls were captured one by one: none can tell what it is composed with. So it takes no halts, and no luck."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.result import Failure
from fastkernels.evaluation.bench.staging import Staging
from fastkernels.evaluation.bench.trap import ENOUGH, Trap

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.timed import Bed

MOST_CALLS, LEAST_CALLS = 32, 4  # of a checked batch; the most where their contents take no more than
MOST_BYTES = 1 << 29
MOST_JUDGED = 16  # of its calls
# What an output is of, with its code.
CODES = {"decoys": "STALE_OUTPUT", "later contents": "TIMED_WRONG", "nothing there": "TIMED_WRONG"}
DETAILS = {
    "decoys": "outputs are those of inputs from before the call's own came: the work was done ahead of its call",
    "later contents": "outputs are those of inputs that came after the call: the work was put off",
    "nothing there": "outputs are not those of the call's inputs: others of the batch did its work, or nobody",
}


def kind_of(got: Any, contents: tuple[Any, Any, Any], right: Callable[[Any, Any], bool | None]) -> str | None:
    """What outputs ``got`` are of, a key of ``CODES``; None where they are right for the true contents.

    Args:
        contents: arguments of the call: the true ones, the decoys from before, those that came later.
        right: whether outputs are right for arguments; None where that cannot be said.

    >>> right = lambda arguments, got: got == 2 * arguments
    >>> [kind_of(got, (1, 5, 7), right) for got in (2, 10, 14, 3)]
    [None, 'decoys', 'later contents', 'nothing there']
    """
    true, decoys, later = contents
    if right(true, got) is not False:
        return None
    if right(decoys, got):
        return "decoys"
    return "later contents" if right(later, got) else "nothing there"


class Checked(Trap):
    """Batches of the contestant ``name`` in graph mode whose calls have their inputs only while it is their turn.

    A batch has some of the calls of a timed one, others each time: the first, and those that are drawn. Whose work
    is done by a call that is not among them returns an old output.
    """

    def __init__(self, bed: Bed, name: str) -> None:
        super().__init__(bed, name)
        self.possible = bed.ring.slots > 1
        most = MOST_BYTES // max(bed.ring.bytes_of_slot(bed.site), 1)
        self._calls = min(bed.ring.slots, MOST_CALLS, max(LEAST_CALLS, most))

    def watch(self, trusted: str) -> None:
        """Checks a contestant that is trusted.

        Raises:
            RunnerFailed: what is seen in it, twice: nothing is to be held against the other in this mode.
        """
        kinds = self.check(trusted)
        kinds = kinds and kinds & self.check(trusted)
        if kinds:
            what = "; ".join(DETAILS[k] for k in kinds)
            raise RunnerFailed("SKIPPED", f"the baseline {trusted} does not pass the harness's own check: {what}")

    def failures(self) -> list[Failure]:
        """What was seen in two batches; the first of it."""
        where = f"calls of one graph, {self.bed.mode}"
        found = [kind for kind in CODES if self._seen[kind] >= ENOUGH]
        return [Failure(code=CODES[kind], where=where, detail=DETAILS[kind]) for kind in found[:1]]

    def _caught(self) -> set[str]:
        return self.check(self.name)

    def check(self, name: str) -> set[str]:
        """Keys of ``CODES`` that one batch of a contestant shows."""
        bed, runner = self.bed, self.bed.runners[name]
        bed.renew()
        slots = sorted([0, *bed.chance.sample(range(1, bed.ring.slots), self._calls - 1)])
        staging = Staging(bed.ring, slots, bed.chance)
        # The child can write to what it maps: what is compared with are copies.
        judged = bed.chance.sample(range(len(slots)), min(MOST_JUDGED, len(slots)))
        contents = {i: staging.contents(i) for i in judged}
        bed.synchronize()
        runner.attach("staging", staging.arena)
        outputs = bed.site.outputs_for(runner, [bed.like] * len(slots))
        with bed.turn(name):
            # Where outputs may be the inputs themselves, or next to them, nothing comes after the call.
            runner.check(slots, staging.before(), staging.after() if bed.may_scribble else [[]] * len(slots))
            runner.stop()
            collected = runner.collect(slots, outputs)
        runner.stop()
        kinds = (kind_of(collected.pick(i).outputs, c, self._right) for i, c in contents.items())
        return {kind for kind in kinds if kind is not None}

    def _right(self, arguments: Any, got: Any) -> bool | None:
        """Whether the outputs are right for these arguments; None where the reference says nothing of them."""
        site = self.bed.site
        drawn = site.referee.expect(arguments, name="a call of the graph")
        if drawn is None:
            return None
        return not judge_drawn(drawn, got, None, task=site.task, dtype=site.dtype).failures
