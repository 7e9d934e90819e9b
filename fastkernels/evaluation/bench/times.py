"""What the rounds of a contest took: batches of each contestant, and what is not a call's own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastkernels.evaluation.bench.replies import Batch
from fastkernels.evaluation.bench.result import Failure, Timing
from fastkernels.evaluation.statistics import median_ratio

LATE_SLACK, LATE_SLACK_SECONDS = 1.1, 2e-4  # of handing over outputs: what two honest contestants may differ by
TOO_NOISY = 2.0  # upper over lower end of an interval


@dataclass(kw_only=True)
class Times:
    """One contestant's batches, one a round, the seconds that handing over their outputs took, and those that the
    device took right after the batch for work of the parent's. ``late`` seconds a batch were left for the hand-over."""

    batches: list[Batch] = field(default_factory=list)
    collect: list[float] = field(default_factory=list)
    drained: list[float] = field(default_factory=list)
    late: float = 0.0

    def per_call(self, fixed: float) -> list[float]:
        """Seconds of a call in each round: a batch less what a batch without calls takes, and what came late."""
        return [(max(b.wall - fixed, b.wall / 10) + self.late) / b.calls for b in self.batches]

    def charge(self, usual: Sequence[float]) -> None:
        """Counts in what handing over took longer than ``usual`` in the same round, where most rounds agree that it
        did."""
        longer = sorted(mine - LATE_SLACK * theirs for mine, theirs in zip(self.collect, usual, strict=True))
        self.late = max(0.0, longer[len(longer) // 4] - LATE_SLACK_SECONDS)

    def timing(self, fixed: float) -> Timing:
        """Median and its interval."""
        values = self.per_call(fixed)
        found = median_ratio(values, [1.0] * len(values))
        events = [b.events / b.calls for b in self.batches if b.events is not None]
        return Timing(
            seconds=found.value,
            low=found.low,
            high=found.high,
            event_seconds=statistics.median(events) if events else None,
        )


@dataclass(kw_only=True)
class Contest:
    """All contestants' times; ``empty`` are batches without calls of a trusted one: the costs that are not a call's."""

    times: Mapping[str, Times]
    empty: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def fixed(self) -> float:
        """Seconds of a batch without calls."""
        return statistics.median(self.empty)

    def noisy(self) -> bool:
        """Whether some contestant's interval says next to nothing."""
        found = [t.timing(self.fixed) for t in self.times.values()]
        return any(t.high > TOO_NOISY * t.low for t in found)
