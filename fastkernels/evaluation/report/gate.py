"""What a report says of correctness: where baseline, candidate and known-bad control stand, by mode and metric."""

from __future__ import annotations

from functools import partial

from fastkernels.evaluation.e2e.result import Correctness, Metric, ModelResult
from fastkernels.evaluation.report import charts
from fastkernels.evaluation.report.document import Block, Cell, Chart, Charts, Table, Text, columns, row
from fastkernels.evaluation.report.numbers import number, share

SCORE_DIGITS = 3


def gate_blocks(model: ModelResult, on: str) -> list[Block]:
    """The gate of one model: its modes, then every metric."""
    if not model.correctness:
        return [Text(text="✗ No gate was judged.", tone="bad")]
    oracles = ". ".join(dict.fromkeys(f"Oracle: {c.oracle.removeprefix('oracle: ')}" for c in model.correctness))
    modes = Table(
        caption=f"The gate by mode; C is the least calibrated score, 0 where red. {oracles}. Judged on {on}.",
        columns=columns("mode", "gate", "C#", "timed outputs plausible#"),
        rows=[row(c.mode, passed(c), f"{c.score:.{SCORE_DIGITS}f}", share(c.timed_outputs)) for c in model.correctness],
    )
    rows = [(f"{m.name}\n{c.mode}", m) for c in model.correctness for m in c.metrics]
    if not rows:
        return [modes]
    chart = Chart(
        title="Distance to the oracle by metric and mode, log scale; left is closer",
        figure=partial(charts.distances, rows),
        height=charts.speed_height(len(rows)),
    )
    metrics = Table(
        caption=(
            "Distance to the oracle, below it the value as the field writes it. Score: 1 is as close as the baseline, "
            f"0 as far as the known-bad control. Judged on {on}."
        ),
        columns=columns("metric", "mode", "baseline#", "candidate#", "control#", "score#"),
        rows=[_metric(m, c.mode) for c in model.correctness for m in c.metrics],
    )
    return [modes, metrics, Charts(charts=[chart], wide=True)]


def passed(judged: Correctness) -> Cell:
    """A gate's colour, in a word, and why."""
    if judged.passed:
        return Cell(text="✓ green", tone="good", note=judged.reason)
    return Cell(text="✗ red", tone="bad", note=judged.reason)


def _metric(m: Metric, mode: str) -> list[Cell]:
    def value(which: str) -> Cell:
        shown = m.shown.get(which)
        return Cell(text=number(getattr(m, which)), note="" if shown is None else f"shown as {exact(shown)}")

    calibrated = (
        Cell(text="not scored", tone="muted", note="control no worse than baseline")
        if m.score is None
        else Cell(text=f"{m.score:.{SCORE_DIGITS}f}")
    )
    return row(m.name, mode, value("baseline"), value("candidate"), value("control"), calibrated)


def exact(value: float) -> str:
    """A value with the digits that tell it from 1; fewer where it is tiny.

    >>> exact(0.99987), exact(12.3456), exact(1.2094e-12)
    ('0.9999', '12.35', '1.2e-12')
    """
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"
