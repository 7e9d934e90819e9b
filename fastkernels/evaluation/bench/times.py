"""What the rounds of a contest took: batches of each contestant, and what is not a call's own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastkernels.evaluation.bench.replies import Batch
from fastkernels.evaluation.bench.result import Failure, Timing
from fastkernels.evaluation.statistics import median_ratio

# What two honest contestants may differ by: in handing over outputs, and in what a device does after the batch.
LATE_SLACK, LATE_SLACK_SECONDS, DRAINED_SLACK_SECONDS = 1.1, 2e-4, 5e-5
TOO_NOISY = 2.0  # upper over lower end of an interval


@dataclass(kw_only=True)
class Times:
    """One contestant's batches, one a round, the seconds that handing over their outputs took, and those that the
    device took right after the batch for work of the parent's. ``late`` seconds a batch were left for either."""

    batches: list[Batch] = field(default_factory=list)
    collect: list[float] = field(default_factory=list)
    drained: list[float] = field(default_factory=list)
    late: float = 0.0

    def per_call(self, fixed: float) -> list[float]:
        """Seconds of a call in each round: a batch less what a batch without calls takes, and what came late."""
        return [(b.beyond(fixed) + self.late) / b.calls for b in self.batches]

    def charge(self, usual: Times) -> None:
        """Counts in what handing over took longer than in the same round of a trusted one, and what the device was busy
        for longer after the batch, where most rounds agree that it did."""
        self.late = _longer(self.collect, usual.collect, LATE_SLACK_SECONDS)
        self.late += _longer(self.drained, usual.drained, DRAINED_SLACK_SECONDS)

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


def _longer(mine: Sequence[float], theirs: Sequence[float], slack: float) -> float:
    """Seconds by which three quarters of the rounds took longer at least, beyond the slack."""
    longer = sorted(m - LATE_SLACK * t for m, t in zip(mine, theirs, strict=True))
    return max(0.0, longer[len(longer) // 4] - slack)


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
