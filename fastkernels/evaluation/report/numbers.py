"""How the report writes numbers: few digits, the unit beside them, a dash where there is none."""

from __future__ import annotations

import math

from fastkernels.evaluation.e2e.result import Interval, Percentiles

NONE = "–"


def ratio(interval: Interval | None) -> str:
    """A ratio and its 95% interval.

    >>> ratio(Interval(value=1.234, low=1.2, high=1.26)), ratio(None)
    ('1.234x [1.200, 1.260]', '–')
    """
    return NONE if interval is None else interval_of(interval, "x")


def interval_of(interval: Interval, unit: str = "", digits: int = 3) -> str:
    """A value and its 95% interval; a plain 0 where it is one.

    >>> interval_of(Interval(value=0, low=0, high=0))
    '0'
    """
    if interval.value == interval.low == interval.high == 0:
        return "0"
    return f"{interval.value:.{digits}f}{unit} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def short_ratio(interval: Interval) -> str:
    """A ratio for a sentence: two digits where they show the interval.

    >>> short_ratio(Interval(value=1.234, low=1.2, high=1.26))
    '1.23x [1.20, 1.26]'
    >>> short_ratio(Interval(value=1.234, low=1.233, high=1.235))
    '1.234x [1.233, 1.235]'
    """
    return interval_of(interval, "x", 2 if interval.high - interval.low >= 0.02 else 3)


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, thousands apart; very small and very large ones as powers of ten.

    >>> number(0.00612), number(1980.0, "MHz"), number(1.4e-7), number(0.0), number(None)
    ('0.00612', '1,980 MHz', '1.4e-07', '0', '–')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        text = "0"
    elif not 1e-4 <= abs(value) < 1e7:
        text = f"{value:.2g}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}"
    return f"{text} {unit}".rstrip()


def share(value: float | None) -> str:
    """A share as percent.

    >>> share(0.6249), share(0.0), share(None)
    ('62.5%', '0.0%', '–')
    """
    return NONE if value is None else f"{100 * value:.1f}%"


def gibibytes(value: int | None) -> str:
    """Bytes as GiB, or MiB below one.

    >>> gibibytes(17_179_869_184), gibibytes(5 << 20)
    ('16.0 GiB', '5.0 MiB')
    """
    if value is None:
        return NONE
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def tail(latency: Percentiles | None) -> str:
    """p50, p95 and p99 of a latency.

    >>> tail(Percentiles(p50=1.5, p95=2, p99=2.25))
    '1.50 / 2.00 / 2.25'
    """
    return NONE if latency is None else " / ".join(number(v) for v in (latency.p50, latency.p95, latency.p99))
