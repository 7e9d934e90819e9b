"""What a report says of time: ratios against noise, raw throughput, and latency distributions by arm.

Of a model that is invalid or whose gate is red, the candidate's times are withheld: beside the baseline's they would be
a speed-up of something else. They stay in the result's JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastkernels.evaluation.e2e.result import ArmName, Interval, ModelResult, RoundSample, WorkloadResult
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.evaluation.report import charts
from fastkernels.evaluation.report.arms import NAMES
from fastkernels.evaluation.report.document import Block, Cell, Chart, Charts, Table, Text, columns, row
from fastkernels.evaluation.report.numbers import NONE, number, ratio, tail
from fastkernels.evaluation.report.verdict import beyond_noise, counts

WITHHELD = Cell(text="withheld", tone="muted", note="the model did not pass")


def speed_blocks(models: Sequence[ModelResult], on: str) -> list[Block]:
    """Speed against noise: one chart and one table over every workload of the models."""
    passed = [(m, w) for m in models if counts(m) for w in m.workloads if w.speedup is not None]
    if not any(m.workloads for m in models):
        return [Text(text="No workload was timed.", tone="muted")]
    rows = [
        (f"{m.model}\n{w.workload.name}", {"candidate": w.speedup, "null": w.null, "noise": w.noise}) for m, w in passed
    ]
    chart = Chart(
        title="Throughput over the baseline, above 1 is faster; the band is how far the baseline is from itself",
        figure=partial(charts.speed, rows),
        height=charts.speed_height(len(rows)),
    )
    table = Table(
        caption=f"Ratios over the baseline, 95% bootstrap intervals over rounds; above 1 is faster. Measured on {on}.",
        columns=columns("workload", "throughput#", "against noise", "latency#", "null arm#", "A/A noise#", "rounds#"),
        rows=[_ratios(m, w) for m in models for w in m.workloads],
    )
    return [Charts(charts=[chart], wide=True), table] if rows else [table]


def _ratios(model: ModelResult, w: WorkloadResult) -> list[Cell]:
    where = Cell(text=w.workload.name, note=model.model)
    machinery = (ratio(w.null), ratio(w.noise), str(len(w.rounds)))
    if not counts(model):
        return row(where, Cell(text="0", tone="bad"), Cell(text="✗ not passed", tone="bad"), NONE, *machinery)
    return row(where, ratio(w.speedup), against_noise(w.speedup, w.noise), ratio(w.latency), *machinery)


def against_noise(speedup: Interval | None, noise: Interval | None) -> Cell:
    """Whether the interval of a speed-up clears 1, and the noise of the unpatched run."""
    if speedup is None:
        return Cell(text="○ not timed", tone="muted")
    match beyond_noise(speedup, noise):
        case "faster":
            return Cell(text="▲ faster", tone="good")
        case "slower":
            return Cell(text="▼ slower", tone="bad")
    return Cell(text="≈ within noise", tone="muted")


def latency_blocks(model: ModelResult, on: str) -> list[Block]:
    """Raw throughput and latency percentiles of every arm, and their distributions."""
    if not model.workloads:
        return [Text(text="No workload was timed.", tone="muted")]
    table = Table(
        caption=(f"Each arm by itself; milliseconds as p50 / p95 / p99. {model.dtype}, {_tp(model)}measured on {on}."),
        columns=columns("workload", "arm", "throughput#", "requests/s#", "TTFT ms#", "TPOT ms#", "request ms#"),
        rows=[_raw(model, w, arm) for w in model.workloads for arm in w.arms],
    )
    drawn = [c for w in model.workloads for c in _charts(w)] if counts(model) else []
    return [Charts(charts=drawn), table] if drawn else [table]


def _raw(model: ModelResult, w: WorkloadResult, arm: ArmName) -> list[Cell]:
    speed = w.arms[arm]
    where = Cell(text=w.workload.name, note=sizes(w.workload) if arm == next(iter(w.arms)) else "")
    if arm == "candidate" and not counts(model):
        return row(where, NAMES[arm], WITHHELD, NONE, NONE, NONE, NONE)
    return row(
        where,
        NAMES[arm],
        number(speed.units_per_s, f"{w.unit}/s"),
        number(speed.requests_per_s),
        tail(speed.ttft_ms),
        tail(speed.tpot_ms),
        tail(speed.latency_ms),
    )


def _charts(w: WorkloadResult) -> list[Chart]:
    """Request latency as an ECDF; TTFT and TPOT, of which rounds are kept, as boxes."""
    name = w.workload.name
    raw = {arm: s.latencies_ms for arm, s in w.arms.items() if s.latencies_ms}
    found = [Chart(title=f"{name}: request latency", figure=partial(charts.distribution, raw))] if raw else []
    for field, title in (("ttft_ms", "TTFT, median of each round"), ("tpot_ms", "TPOT, median of each round")):
        values = {arm: _of(w.rounds, arm, field) for arm in w.arms}
        if all(values.values()):
            found.append(Chart(title=f"{name}: {title}", figure=partial(charts.boxes, values)))
    return found


def _of(rounds: Sequence[dict[ArmName, RoundSample]], arm: ArmName, field: str) -> list[float]:
    values = [getattr(r[arm], field) for r in rounds if arm in r]
    return [v for v in values if v is not None]


def sizes(workload: Workload) -> str:
    """What one block of a workload asks for.

    >>> sizes(Workload(name="LLM.mixed", batch=8, requests=16, input_tokens=(64, 512), output_tokens=32))
    '16 requests, batch 8, 64, 512 tokens in, 32 out'
    """
    parts = [f"{workload.requests} request{'s' if workload.requests > 1 else ''}", f"batch {workload.batch}"]
    if workload.input_tokens:
        parts.append(f"{', '.join(map(str, workload.input_tokens))} tokens in")
    if workload.output_tokens:
        parts.append(f"{workload.output_tokens} out")
    if workload.size:
        parts.append("x".join(map(str, workload.size)))
    return ", ".join(parts)


def _tp(model: ModelResult) -> str:
    return f"tensor parallel {model.tp}, " if model.tp > 1 else ""
