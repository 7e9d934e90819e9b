"""What a checked batch brings to its slots: contents that are there for one call only, in an arena of the parent's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastkernels.evaluation.bench.inputs import clone
from fastkernels.evaluation.bench.ring import Ring, row
from fastkernels.evaluation.bench.shared import Moves

# Of a tensor's elements, halved so many times, only some differ in every other call: to see whether contents are new
# all of them must be read.
PART_SHIFTS = range(3, 20)
LEAST_NEW = 3  # calls whose contents are wholly new


class Staging:
    """True contents for the calls of the given ``slots``, and, where ``parameters``, a place for new ones of those."""

    def __init__(self, ring: Ring, slots: Sequence[int], chance: random.Random, *, parameters: bool) -> None:
        self.ring, self.slots = ring, list(slots)
        self._true, end = ring.laid(len(slots))
        there = ring.site.parameters if parameters else {}
        self._parameters = {n: replace(p, offset=end + p.offset) for n, p in there.items()}
        end = max((p.end for p in self._parameters.values()), default=end)
        self.arena = ring.site.memory.arena("staging", end)
        ring.fill(self.arena, self._true, len(slots))
        for index in range(LEAST_NEW, len(slots), 2):
            self._differ_in_part(index, chance)

    def _differ_in_part(self, index: int, chance: random.Random) -> None:
        """True contents that are those of the slot but for some elements of each tensor of floats, if it has one."""
        if not any(block.dtype.is_floating_point for block in self._true):
            return
        for block, there in zip(self._true, self.ring.blocks, strict=True):
            true, old = self.arena.view(block)[index], self.ring.arena.view(there)[self.slots[index]]
            count = max(1, len(true) >> chance.choice(PART_SHIFTS)) if block.dtype.is_floating_point else 0
            start = chance.randrange(max(1, len(true) - count + 1))
            part = true[start : start + count].clone()
            true.copy_(old)
            true[start : start + count] = part

    def contents(self, index: int) -> tuple[Any, Any]:
        """Copies of the arguments (packed) of one call: those that are true, those in its slot now."""
        true = self.arena.views(self.ring.slot(self._true, index))
        return clone(true), self.ring.contents(self.slots[index])

    def before(self, changed: int | None = None) -> list[Moves]:
        """What brings each call its true contents, and the call at ``changed`` the site's present parameters too."""
        found = [self._inputs(index) for index in range(len(self.slots))]
        if changed is not None:
            site = self.ring.site
            self.arena.write(self._parameters, {n: p.detach() for n, p in site.values.items()})
            found[changed] += [
                ("parameters", there.offset, here.offset, there.span * there.dtype.itemsize)
                for there, here in ((site.parameters[n], here) for n, here in self._parameters.items())
                if there.span
            ]
        return found

    def _inputs(self, index: int) -> Moves:
        return [
            ("inputs", row(there, self.slots[index]), row(block, index), block.shape[1] * block.dtype.itemsize)
            for there, block in zip(self.ring.blocks, self._true, strict=True)
            if block.shape[1]
        ]
