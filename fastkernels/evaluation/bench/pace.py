"""Do the positions of a batch pass one by one, or in bursts? By the parent's clock, from what shared memory tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

LEAST_CALLS = 8  # whose time is known
SHORT = 0.25  # of the mean, and of a trusted one's usual call: what hardly any honest call is
BURSTS = 0.5  # of the calls are short
OUTLIERS = 16  # one in so many calls may have been held up by the system


class Pace:
    """What a reader of the position saw, and when, by ``clock``, in seconds.

    >>> def walked(step: int) -> Pace:
    ...     ticks = iter(range(100_000))
    ...     pace = Pace(clock=lambda: next(ticks) * 1e-6)
    ...     for look in range(4000):
    ...         _ = pace.look([look // (40 * step) * step])
    ...     return pace
    >>> walked(1).in_bursts(walked(1).usual), walked(8).in_bursts(walked(1).usual)
    (False, True)
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: int | None = None
        self._since = self._before = 0.0
        # Seconds for which a position was seen; and how many passed between two looks, how far apart at most.
        self._stays: list[float] = []
        self._passed: list[tuple[int, float]] = []

    def look(self, counter: Sequence[int]) -> int:
        """The position that ``counter`` tells."""
        before = self._clock()
        position = counter[0]
        after = self._clock()
        if position != self._last:
            if self._last is not None:
                self._stays.append(after - self._since)
                if position - self._last > 1:
                    self._passed.append((position - self._last - 1, after - self._before))
            self._last, self._since = position, before
        self._before = before
        return position

    @property
    def usual(self) -> float:
        """Seconds of a call that nothing held up: the lower quartile; 0 where nothing was seen."""
        return sorted(self._stays)[len(self._stays) // 4] if self._stays else 0.0

    def in_bursts(self, usual: float) -> bool:
        """Whether most calls took a small part of the time that the mean call took, and of a trusted one's ``usual``.

        On a busy machine many calls are held up, and the mean says little. Those that passed between two looks were
        short if the time between would not do for short calls; else they say nothing.
        """
        stays = sorted(self._stays)
        known = len(stays) + sum(n for n, _ in self._passed)
        outliers = min(max(1, known // OUTLIERS), len(stays) // 2)
        total = sum(stays[: len(stays) - outliers])
        if known < LEAST_CALLS:
            return False
        limit = SHORT * min(total / known, usual)
        short = sum(1 for s in stays if s < limit) + sum(n for n, gap in self._passed if gap < n * limit)
        unknown = sum(n for n, gap in self._passed if gap >= n * limit)
        return known - unknown >= LEAST_CALLS and short > BURSTS * (known - unknown)
