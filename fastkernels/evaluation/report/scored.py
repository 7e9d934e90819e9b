"""What a report says of MacroEval's score."""

from __future__ import annotations

from fastkernels.evaluation.macroeval.result import Score
from fastkernels.evaluation.report.conditions import measured_on
from fastkernels.evaluation.report.document import Block, Cell, Table, Text, columns, row
from fastkernels.evaluation.report.judged import Judged
from fastkernels.evaluation.report.numbers import NONE, interval_of, ratio


def score_line(judged: Judged) -> str:
    """The score and the three numbers that it is the product of."""
    s = judged.score
    if s is None:
        return f"no score: {judged.unscored}"
    passed = ""
    if s.S_passed is not None and s.S.value == 0:
        passed = f"; S over the categories that passed is {ratio(s.S_passed)}"
    return f"MacroEval {ratio(s.score).replace('x', '', 1)} = S {ratio(s.S)} × C {s.C:.3f} × Cov {s.Cov:.3f}{passed}"


def score_blocks(judged: Judged) -> list[Block]:
    """MacroEval by category and model."""
    s = judged.score
    if s is None:
        return [Text(text=f"No score: {judged.unscored}", tone="bad")]
    on = measured_on(judged.run)
    categories = Table(
        caption=(
            "MacroEval = S × C × Cov. S: speed over the baseline, geometric; C: correctness, calibrated; "
            f"Cov: share of models that passed; failures are 0. Measured on {on}."
        ),
        columns=columns("category", "S#", "C#", "Cov#", "passed#", "score#"),
        rows=[
            row("overall", ratio(s.S), f"{s.C:.3f}", f"{s.Cov:.3f}", _passed(s), interval_of(s.score)),
            *(
                row(c.category, ratio(c.S), f"{c.C:.3f}", f"{c.Cov:.3f}", f"{c.passed} of {c.models}", NONE)
                for c in s.categories
            ),
        ],
    )
    models = Table(
        caption=f"The models of the score: speed is throughput^0.5 × latency^0.5 over workloads. Measured on {on}.",
        columns=columns("model", "category", "speed#", "throughput#", "latency#", "C#"),
        rows=[
            row(
                m.model,
                m.category,
                ratio(m.speed) if m.passed else Cell(text="0", tone="bad"),
                ratio(m.thru),
                ratio(m.lat),
                f"{m.C:.3f}",
            )
            for m in s.models
        ],
    )
    return [categories, models, *(Text(text=note, tone="muted") for note in s.notes)]


def _passed(s: Score) -> str:
    return f"{sum(c.passed for c in s.categories)} of {sum(c.models for c in s.categories)}"
