"""Times several ways to do the same work in turn, so that drift of the machine falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastkernels.evaluation.statistics import median_ratio


@dataclass(frozen=True, kw_only=True)
class Timings:
    """``seconds[arm][round]``: the calls of one arm in one round."""

    seconds: Mapping[str, list[list[float]]]

    def median(self, arm: str) -> float:
        """Median seconds of a call."""
        return statistics.median(t for calls in self.seconds[arm] for t in calls)

    def speedup(self, base: str, arm: str) -> tuple[float, float, float]:
        """``(low, ratio, high)`` of median(base) / median(arm), above 1 where ``arm`` is faster; 95% bootstrap.

        Whole rounds are drawn, the same for both arms: calls of a round share its noise, so they are no independent
        samples, and what slowed a round slowed both arms.

        >>> timings = Timings(seconds={"a": [[2.0, 2.1], [2.0, 1.9]], "b": [[1.0, 1.1], [0.9, 1.0]]})
        >>> [round(x, 2) for x in timings.speedup("a", "b")]
        [1.95, 2.0, 2.05]
        """
        found = median_ratio(self.seconds[base], self.seconds[arm])
        return found.low, found.value, found.high


def interleave(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
) -> Timings:
    """Calls every arm ``warmup`` times untimed, then twice a round: in order, then in reverse (ABBA).

    ``synchronize`` is called before each reading of the clock: ``torch.cuda.synchronize`` where the work is on a GPU.

    >>> timings = interleave({"a": lambda: None, "b": lambda: None}, rounds=3)
    >>> [len(calls) for calls in timings.seconds["b"]]
    [2, 2, 2]
    """
    for arm in arms.values():
        for _ in range(warmup):
            arm()
    names = list(arms)
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append([])
        for name in (*names, *reversed(names)):
            seconds[name][-1].append(_timed(arms[name], synchronize))
    return Timings(seconds=seconds)


def _timed(call: Callable[[], object], synchronize: Callable[[], None] | None) -> float:
    if synchronize is not None:
        synchronize()
    started = time.perf_counter()
    call()
    if synchronize is not None:
        synchronize()
    return time.perf_counter() - started
