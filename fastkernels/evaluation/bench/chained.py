"""In a child: the timed calls of graph mode. A batch is one graph, which is there before the clock runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastkernels.evaluation.bench.batch import batch
from fastkernels.evaluation.bench.chain import Chain, Copy, Step, interleaved
from fastkernels.evaluation.bench.graphed import Captured
from fastkernels.evaluation.bench.shared import Arena, Moves


class Chained:
    """Captured ``calls``, one a slot, of which the first so many are one graph for each of ``lengths``.

    Raises:
        RuntimeError: CUDA does not compose them.
    """

    def __init__(self, calls: list[Captured], lengths: Sequence[int]) -> None:
        self._calls = calls
        self._chains = {length: Chain(calls[:length]) for length in lengths}

    def timed(self, order: list[int], synchronize: Callable[[], None] | None) -> tuple[list[Any], float | None]:
        """As ``batch``, of the first slots in their order. A position is told nowhere within a graph."""
        _, events = batch(Chain.launch, iter([(self._chains[len(order)],)] if order else []), synchronize)
        return self._outputs(order), events

    def checked(
        self, order: list[int], before: list[Moves], after: list[Moves], *, inputs: Arena, staging: Arena
    ) -> list[Any]:
        """The outputs of the slots named, as one graph of its own; ``before`` and ``after`` each call bytes are brought
        from one arena to the other."""

        def copies(moves: Moves) -> list[Copy]:
            to, come = inputs.memory.data_ptr(), staging.memory.data_ptr()
            return [Copy(target=to + there, source=come + here, count=count) for there, here, count in moves]

        self._run(interleaved((self._calls[i] for i in order), map(copies, before), map(copies, after)))
        return self._outputs(order)

    def _outputs(self, order: list[int]) -> list[Any]:
        return [self._calls[i].outputs for i in order]

    def _run(self, steps: Iterator[Step]) -> None:
        chain = Chain(steps)
        chain.launch()
        chain.wait()
