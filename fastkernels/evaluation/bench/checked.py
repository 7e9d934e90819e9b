"""Does every call of a graph do its own work, when it is its turn? In batches that are not scored, the graph itself
brings each call its contents right before it, and takes its outputs right after; in the middle parameters change.

Calls were captured one by one: none can tell what it is composed with. So it takes no halts, and no luck."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fastkernels.evaluation.bench.collected import Collected
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.result import Failure
from fastkernels.evaluation.bench.shared import Moves
from fastkernels.evaluation.bench.staging import Staging
from fastkernels.evaluation.bench.trap import ENOUGH, Trap

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.timed import Bed

MOST_CALLS, LEAST_CALLS = 32, 4  # of a checked batch; the most where their contents take no more than
MOST_BYTES = 1 << 29
MOST_PARAMETER_BYTES = 1 << 28  # that change within a batch
MOST_JUDGED = 16  # of its calls, beside two
# What an output is of, with its code.
CODES = {"decoys": "STALE_OUTPUT", "old parameters": "STALE_OUTPUT", "nothing there": "TIMED_WRONG"}
DETAILS = {
    "decoys": "outputs are those of inputs from before the call's own came: the work was done ahead of its call",
    "old parameters": "outputs are those of parameters that had changed before the call: they were read ahead of it",
    "nothing there": "outputs are not those of the call's inputs and parameters when it ends: other calls did some of "
    "its work, later ones, or nobody",
}
Right = Callable[[Any], bool | None]  # whether outputs are right; None where that cannot be said


def kind_of(got: Any, right: Right, wrong: Iterable[tuple[str, Right]]) -> str | None:
    """What outputs ``got`` are of, a key of ``CODES``; None where they are right.

    Args:
        right: for the call's contents and parameters.
        wrong: for others, each with what it then is.

    >>> true, decoys = (lambda got: got == 2), (lambda got: got == 10)
    >>> [kind_of(got, true, [("decoys", decoys)]) for got in (2, 10, 3)]
    [None, 'decoys', 'nothing there']
    """
    if right(got) is not False:
        return None
    return next((kind for kind, holds in wrong if holds(got)), "nothing there")


class Checked(Trap):
    """Batches of the contestant ``name`` in graph mode whose calls have their inputs only while it is their turn.

    A batch has some of the calls of a timed one, others each time: the first, and those that are drawn, often
    neighbours. Whose work is done by a call that is not among them, or later, returns an old output.
    """

    def __init__(self, bed: Bed, name: str) -> None:
        super().__init__(bed, name)
        self.possible = bed.ring.slots > 1
        most = MOST_BYTES // max(bed.ring.bytes_of_slot(bed.site), 1)
        self._calls = min(bed.ring.slots, MOST_CALLS, max(LEAST_CALLS, most))
        count = sum(p.span * p.dtype.itemsize for p in bed.site.parameters.values())
        self._changes = 0 < count <= MOST_PARAMETER_BYTES
        self._generator = torch.Generator(device=bed.site.device).manual_seed(secrets.randbits(62))

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
        bed, site = self.bed, self.bed.site
        bed.renew()
        slots = self._slots()
        staging = Staging(bed.ring, slots, bed.chance, parameters=self._changes)
        changed = bed.chance.randrange(1, len(slots)) if self._changes else None
        # The child can write to what it maps: what is compared with are copies.
        judged = {*bed.chance.sample(range(len(slots)), min(MOST_JUDGED, len(slots))), changed or 0, len(slots) - 1}
        contents = {i: staging.contents(i) for i in judged}
        old = site.referee
        try:
            if self._changes:
                old = site.lasting_referee()
                site.vary(self._generator)  # the shared memory still has the old ones
            collected = self._run(name, slots, staging, staging.before(changed))
        finally:
            site.publish()
            site.memory.drop("staging")
        found = set()
        for i, (true, decoys) in contents.items():
            is_new = changed is not None and i >= changed
            before = partial(self._is, referee=old)
            present = partial(self._is, referee=site.referee) if is_new else before
            wrong = [("decoys", partial(present, decoys))]
            wrong += [("old parameters", partial(before, true)), ("decoys", partial(before, decoys))] if is_new else []
            found.add(kind_of(collected.pick(i).outputs, partial(present, true), wrong))
        return {kind for kind in found if kind is not None}

    def _slots(self) -> list[int]:
        """Those of a batch, in order: the first, and others, in half of the batches neighbours."""
        slots, others = self.bed.ring.slots, self._calls - 1
        if self.bed.chance.random() < 0.5:
            start = self.bed.chance.randrange(1, slots - others + 1)
            return [0, *range(start, start + others)]
        return sorted([0, *self.bed.chance.sample(range(1, slots), others)])

    def _run(self, name: str, slots: list[int], staging: Staging, before: list[Moves]) -> Collected:
        """The outputs of one batch in the parent's memory, each from when its call had ended."""
        bed, runner = self.bed, self.bed.runners[name]
        with bed.turn(name):
            runner.attach("staging", staging.arena)
            outputs = bed.site.outputs_for(runner, [bed.like] * len(slots))
            collected = runner.check(slots, before, outputs)
            runner.detach("staging")
        runner.stop()
        return collected
