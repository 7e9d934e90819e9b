"""In a child: the timed calls of graph mode. A batch is one graph, which is there before the clock runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastkernels.evaluation.bench.batch import batch
from fastkernels.evaluation.bench.chain import Chain, Copy, Step, interleaved
from fastkernels.evaluation.bench.graphed import Captured, captured
from fastkernels.evaluation.bench.shared import Arena, Moves, Place


class Chained:
    """Captured ``calls``, one a slot, of which the first so many are one graph for each of ``lengths``.

    Raises:
        RuntimeError: CUDA does not compose them.
    """

    def __init__(self, calls: list[Captured], lengths: Sequence[int]) -> None:
        self._calls = calls
        self._outputs = [call.outputs for call in calls]  # ready: the clock still runs when they are returned
        self._chains = {length: Chain(calls[:length]) for length in lengths}

    def timed(self, order: list[int], synchronize: Callable[[], None] | None) -> tuple[list[Any], float | None]:
        """As ``batch``, of the first slots in their order. A position is told nowhere within a graph."""
        _, events = batch(Chain.launch, iter([(self._chains[len(order)],)] if order else []), synchronize)
        return self._outputs[: len(order)], events

    def checked(
        self,
        order: list[int],
        before: list[Moves],
        outputs: list[list[Place]],
        *,
        take: Callable[[Any, tuple[Any, ...], list[Place]], Any],
        arenas: Mapping[str, Arena],
    ) -> list[Any]:
        """Runs the calls of the slots named as one graph of its own: ``before`` each bytes are brought from the staging
        arena, and right after it ``take(result, arguments, places)`` hands over its outputs. What ``take`` returned."""
        calls = [self._calls[i] for i in order]
        taken = self._captured(take, [(c.outputs, c.arguments, p) for c, p in zip(calls, outputs, strict=True)])
        start = {name: arena.memory.data_ptr() for name, arena in arenas.items()}

        def copies(moves: Moves) -> list[Copy]:
            come = start["staging"]
            return [Copy(target=start[to] + there, source=come + here, count=count) for to, there, here, count in moves]

        self._run(interleaved(calls, map(copies, before), taken))
        return [one.outputs for one in taken]

    def _captured(self, function: Callable[..., Any], slots: Sequence[tuple[Any, ...]]) -> list[Captured]:
        return captured(function, slots)

    def _run(self, steps: Iterator[Step]) -> None:
        chain = Chain(steps)
        chain.launch()
        chain.wait()
