"""A report as a document: verdict, score, models, speed, then each model in full, then how to run it again."""

from __future__ import annotations

from collections.abc import Sequence

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import ModelResult, RunResult
from fastkernels.evaluation.report.conditions import (
    device_blocks,
    failure_blocks,
    measured_on,
    provenance,
    trial_blocks,
)
from fastkernels.evaluation.report.document import Block, Cell, Document, Section, Table, Text, columns, row
from fastkernels.evaluation.report.gate import gate_blocks
from fastkernels.evaluation.report.judged import Judged, judge
from fastkernels.evaluation.report.numbers import NONE, number, ratio, share
from fastkernels.evaluation.report.patched import coverage_blocks, interposition_blocks, patch_blocks
from fastkernels.evaluation.report.scored import score_blocks, score_line
from fastkernels.evaluation.report.side_by_side import side_by_side
from fastkernels.evaluation.report.speed import latency_blocks, speed_blocks
from fastkernels.evaluation.report.verdict import why

OPEN_MODELS = 4  # with more, each model is folded


def view(runs: Sequence[RunResult]) -> Document:
    """The document over one run, or over several side by side.

    Raises:
        EvaluationError: no runs.
    """
    if not runs:
        raise EvaluationError("nothing to report on: give a run's folder or its result.json.")
    judged = judge(runs)
    one = judged[0]
    verdicts = [Cell(text=f"{j.sign[0]} {j.verdict.sentence}.", tone=j.sign[1], note=score_line(j)) for j in judged]
    if len(judged) == 1:
        title = f"{one.run.candidates} against the strongest unpatched run"
        return Document(title=title, subtitle=about(one.run), verdicts=verdicts, sections=run_sections(one))
    whole = [
        Section(
            title=f"Run {j.name}", blocks=[Text(text=about(j.run), tone="muted")], sections=run_sections(j, folded=True)
        )
        for j in judged
    ]
    title = f"{len(judged)} runs side by side"
    subtitle = "; ".join(dict.fromkeys(f"scenario {j.run.scenario} on {measured_on(j.run)}" for j in judged))
    return Document(title=title, subtitle=subtitle, verdicts=verdicts, sections=[side_by_side(judged), *whole])


def about(run: RunResult) -> str:
    """Where, when and what."""
    return f"scenario {run.scenario}, {measured_on(run)}, {run.date}, run {run.id}"


def run_sections(judged: Judged, *, folded: bool = False) -> list[Section]:
    """Everything of one run."""
    run, on = judged.run, measured_on(judged.run)
    return [
        Section(title="Models", blocks=[models_table(judged, on)]),
        Section(title="Score", blocks=score_blocks(judged)),
        Section(title="Speed against noise", blocks=speed_blocks(run.models, on)),
        *(model_section(m, on, folded=folded or len(run.models) > OPEN_MODELS) for m in run.models),
        provenance(run),
    ]


def models_table(judged: Judged, on: str) -> Table:
    """One row a model: how it ended, and where it stands."""
    run = judged.run
    speeds = {m.model: ratio(m.speed) for m in judged.score.models} if judged.score else {}
    return Table(
        caption=f"One row a model of scenario {run.scenario}; measured on {on}.",
        columns=columns("model", "verdict", "speed#", "C#", "sites held#", "time held#", "baseline", "why"),
        rows=[
            row(
                Cell(text=m.model, note=f"{m.category}, {m.dtype}"),
                Cell(text="✓ passed", tone="good") if m.passed else Cell(text="✗ scores 0", tone="bad"),
                speeds.get(m.model, NONE) if m.passed else Cell(text="0", tone="bad"),
                f"{m.score:.3f}",
                f"{m.coverage.applied} of {m.coverage.sites}" if m.coverage else NONE,
                share(m.coverage.share) if m.coverage else NONE,
                m.baseline or NONE,
                "" if m.passed else why(m),
            )
            for m in run.models
        ],
    )


def model_section(model: ModelResult, on: str, *, folded: bool) -> Section:
    """One model in full; what went wrong comes first."""
    facts = [model.family, model.dtype, f"tp {model.tp}" if model.tp > 1 else "", model.weights]
    size = number(model.parameters / 1e6, "M parameters") if model.parameters else ""
    head: list[Block] = [Text(text=", ".join(f for f in [*facts, size] if f), tone="muted")]
    if not model.passed:
        head.append(Text(text=f"✗ scores 0: {why(model)}", tone="bad"))
    candidate = model.arms.get("candidate")
    circumstances = [*trial_blocks(model, on), *device_blocks(model, on)]
    named = f" ({model.baseline})" if model.baseline else ""
    return Section(
        title=model.model,
        folded=folded,
        blocks=[*head, *failure_blocks(model)],
        sections=[
            Section(title="Correctness", blocks=gate_blocks(model, on)),
            Section(title="Latency and throughput", blocks=latency_blocks(model, on)),
            Section(title="Coverage", blocks=coverage_blocks(model.coverage, on)),
            Section(
                title="What was patched, and why not", blocks=patch_blocks(candidate.patch if candidate else None, on)
            ),
            Section(title="Proof of interposition", blocks=interposition_blocks(model, on)),
            Section(title=f"Baseline{named}, processes and device", blocks=circumstances),
        ],
    )
