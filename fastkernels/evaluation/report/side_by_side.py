"""What a report of several runs says first: each run's score, and their speeds workload by workload."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import ModelResult, RunResult, WorkloadResult
from fastkernels.evaluation.macroeval.leaderboard import leaderboard
from fastkernels.evaluation.report import charts
from fastkernels.evaluation.report.conditions import measured_on
from fastkernels.evaluation.report.document import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Section,
    Table,
    Text,
    columns,
    row,
)
from fastkernels.evaluation.report.judged import Judged
from fastkernels.evaluation.report.numbers import NONE, interval_of, ratio
from fastkernels.evaluation.report.verdict import counts


def side_by_side(judged: Sequence[Judged]) -> Section:
    """Scores, then each workload's throughput and each model's C, a column a run."""
    names = [j.name for j in judged]
    scores = Table(
        caption="Each run by itself, on its own device.",
        columns=columns("run", "verdict", "score#", "S#", "C#", "Cov#", "device", "date"),
        rows=[
            row(
                Cell(text=j.name, note=j.run.id),
                Cell(text=f"{j.sign[0]} {j.verdict.state}", tone=j.sign[1]),
                *(
                    (interval_of(j.score.score), ratio(j.score.S), f"{j.score.C:.3f}", f"{j.score.Cov:.3f}")
                    if j.score
                    else (NONE,) * 4
                ),
                measured_on(j.run),
                j.run.date,
            )
            for j in judged
        ],
    )
    cells = {(m.model, w.workload.name, j.name): (m, w) for j in judged for m in j.run.models for w in m.workloads}
    keys = list(dict.fromkeys((m, w) for m, w, _ in cells))
    blocks: list[Block] = [scores, *ranking([j.run for j in judged])]
    if keys:
        found = {k: {n: cells[*k, n][1].speedup for n in names if (*k, n) in cells} for k in keys}
        rows = [(f"{m}\n{w}", found[m, w]) for m, w in keys]
        chart = Chart(
            title="Throughput over each run's own baseline, above 1 is faster",
            figure=partial(charts.compare, rows, names),
            height=charts.speed_height(len(rows)) + 18 * len(names),
        )
        table = Table(
            caption="Throughput over each run's own baseline, on its device, 95% intervals; 0 where not passed.",
            columns=columns("workload", *(Column(heading=n, kind="number") for n in names)),
            rows=[row(Cell(text=w, note=m), *(_beside(cells.get((m, w, n))) for n in names)) for m, w in keys],
        )
        blocks += [table, Charts(charts=[chart], wide=True)]
    return Section(title="Side by side", blocks=blocks)


def _beside(found: tuple[ModelResult, WorkloadResult] | None) -> Cell:
    if found is None:
        return Cell(text="○ not run", tone="muted")
    model, workload = found
    return Cell(text=ratio(workload.speedup)) if counts(model) else Cell(text="✗ 0", tone="bad")


def ranking(runs: Sequence[RunResult]) -> list[Block]:
    """The candidate sets ranked over the same models, where the runs may be mixed."""
    try:
        board = leaderboard(runs)
    except EvaluationError as error:
        return [Text(text=f"Not ranked: {error}", tone="warn")]
    if len(board.standings) < 2:
        return []
    return [
        Table(
            caption=f"Candidate sets ranked over the models of all, on {measured_on(runs[0])}; a missing one is 0.",
            columns=columns("rank#", "candidates", "score#", "S#", "C#", "Cov#", "remarks"),
            rows=[
                row(
                    str(s.rank),
                    Cell(text=s.score.candidates, note=s.score.digest),
                    interval_of(s.score.score),
                    ratio(s.score.S),
                    f"{s.score.C:.3f}",
                    f"{s.score.Cov:.3f}",
                    board.told(s),
                )
                for s in board.standings
            ],
        )
    ]
