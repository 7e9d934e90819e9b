"""What a report says of the patch: coverage by modules and time, how every site ended, and the proof that it ran."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

from fastkernels.cli.summary import STATES, Row, site_rows, unrecognised_rows
from fastkernels.evaluation.coverage.result import Coverage
from fastkernels.evaluation.e2e.result import ArmName, ArmResult, ModelResult
from fastkernels.evaluation.report import charts
from fastkernels.evaluation.report.arms import NAMES
from fastkernels.evaluation.report.document import Block, Cell, Chart, Charts, Details, Table, Text, Tone, columns, row
from fastkernels.evaluation.report.numbers import NONE, share
from fastkernels.patches.interposition import Evidence
from fastkernels.patches.report import Report

GLYPHS = dict(zip(STATES, ("✓", "◐", "✗", "◌", "○"), strict=True))
TONES: dict[str, Tone] = {"applied": "good", "gated": "warn", "refused": "bad", "shadowed": "", "unmatched": "muted"}


def coverage_blocks(found: Coverage | None, on: str) -> list[Block]:
    """Coverage by task: modules and time; then where the rest of the time is."""
    if found is None:
        return [Text(text="Coverage was not measured.", tone="muted")]
    table = Table(
        caption=(
            f"Sites that candidates hold, and their share of the unpatched model's {found.clock} time in eager. "
            f"Measured on {on}."
        ),
        columns=columns("task", "sites held#", "of sites#", f"share of {found.clock} time#"),
        rows=[
            *(row(t.task, str(t.applied), str(t.sites), share(t.share)) for t in found.tasks),
            row("all", str(found.applied), str(found.sites), share(found.share)),
            *(row(Cell(text=cls, note="not replaced"), "", "", share(part)) for cls, part in found.outside.items()),
        ],
    )
    bars = len([t for t in found.tasks if t.share]) + len(found.outside)
    if not bars:
        return [table]
    chart = Chart(
        title=f"Where the {found.clock} time of the unpatched model is, in eager",
        figure=partial(charts.coverage, found),
        height=charts.FRAME_PIXELS + 28 * min(bars + 1, 15),
    )
    return [Charts(charts=[chart], wide=True), table]


def patch_blocks(report: Report | None, on: str) -> list[Block]:
    """What was patched and why not: one row a task, then paths by pattern, candidates, and what was not recognised."""
    if report is None:
        return [Text(text="The candidate arm left no report of its patch.", tone="muted")]
    rows = site_rows(report)
    by_task: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for r in rows:
        by_task[r.level, r.task].append(r)
    tasks = Table(
        caption=f"What was patched and why not, by task: {len(report.sites)} sites of {report.model} on {on}.",
        columns=columns("task", "level#", *(f"{s}#" for s in STATES), "why not"),
        rows=[_task(task, level, own) for (level, task), own in sorted(by_task.items(), reverse=True)],
    )
    paths = Table(
        caption=f"Sites of {report.model} that ended alike in one row; * stands for every index.",
        columns=columns("where$", "class", "task", "sites#", "state", "candidate", "calls#", "reason"),
        rows=[
            row(
                "\n".join(r.where),
                r.cls,
                r.task,
                str(r.count),
                state(r.state),
                r.candidate or NONE,
                str(r.calls),
                r.reason,
            )
            for r in rows
        ],
    )
    candidates = Table(
        caption=f"Where each candidate ended in {report.model}.",
        columns=columns("candidate", "task", "state", "sites#", "calls#", "digest$", "reason"),
        rows=[
            row(c.label, c.task, state(c.state), str(c.sites), str(c.calls), c.digest[:12], c.reason)
            for c in sorted(report.candidates, key=lambda c: STATES.index(c.state))
        ],
    )
    blocks: list[Block] = [
        tasks,
        Details(summary=f"Sites by path pattern ({len(rows)} rows)", blocks=[paths]),
        Details(summary=f"Candidates ({len(report.candidates)})", blocks=[candidates]),
    ]
    if report.unrecognised:
        missed = Table(
            caption=f"Modules of {report.model} that only looked like a task.",
            columns=columns("where$", "modules#", "class", "looked like", "why not"),
            rows=[
                row("\n".join(where), str(count), cls, task, reason)
                for count, where, cls, task, reason in unrecognised_rows(report.unrecognised)
            ],
        )
        blocks.append(Details(summary=f"Not recognised ({len(report.unrecognised)} modules)", blocks=[missed]))
    return blocks


def _task(task: str, level: int, rows: Sequence[Row]) -> list[Cell]:
    counted: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for r in rows:
        counted[r.state] += r.count
        if r.state != "applied" and r.reason:
            reasons[f"{r.state}: {r.reason}"] += r.count
    cells = [
        Cell(text=f"{GLYPHS[s]} {counted[s]}", tone=TONES[s]) if counted[s] else Cell(text="0", tone="muted")
        for s in STATES
    ]
    told = "; ".join(f"{n} {why}" for why, n in reasons.most_common(2))
    return row(task, f"L{level}", *cells, told + ("; …" if len(reasons) > 2 else ""))


def state(name: str) -> Cell:
    """A terminal state: a glyph and its word."""
    return Cell(text=f"{GLYPHS[name]} {name}", tone=TONES[name])


def interposition_blocks(model: ModelResult, on: str) -> list[Block]:
    """Proof by arm that candidates ran, and that nothing was patched in the baseline."""
    arms = Table(
        caption=f"Patched modules in each arm's process and their calls on {on}; the baseline must have none.",
        columns=columns("arm", "evidence", "patched modules#", "calls#"),
        rows=[
            row(NAMES[name], _proof(name, arm), _count(arm.dispatchers), _count(arm.dispatcher_calls))
            for name, arm in model.arms.items()
        ],
    )
    seen = [
        (name, task, e)
        for name, arm in model.arms.items()
        if arm.interposition is not None
        for task, e in arm.interposition.tasks.items()
        if name != "null" or e.proven  # the original itself has nothing of its own to show in a graph
    ]
    if not seen:
        return [arms]
    tasks = Table(
        caption=f"What a window of real calls on {on} showed of each candidate.",
        columns=columns("arm", "task", "candidate", "proven by", "calls#", "kernels and operators"),
        rows=[row(NAMES[name], task, e.candidate, _how(e), str(e.calls), _names(e)) for name, task, e in seen],
    )
    return [arms, Details(summary=f"Evidence by candidate ({len(seen)})", blocks=[tasks])]


def _proof(name: ArmName, arm: ArmResult) -> Cell:
    if arm.state == "failed":
        return Cell(text="✗ arm failed", tone="bad", note=arm.reason)
    if name == "baseline":
        if arm.dispatchers == 0 and not arm.dispatcher_calls:
            return Cell(text="✓ nothing patched", tone="good")
        return Cell(text="✗ patched, or not counted", tone="bad")
    if arm.interposition is None:
        return Cell(text="✗ none", tone="bad")
    if name == "null" and arm.interposition.unproven:
        if arm.dispatchers:
            return Cell(text="○ the originals, behind patches", tone="muted")
        return Cell(text="✗ nothing patched", tone="bad")
    if unproven := arm.interposition.unproven:
        return Cell(text="✗ unproven", tone="bad", note=", ".join(unproven))
    proven = sum(e.proven for e in arm.interposition.tasks.values())
    if not proven:
        return Cell(text="✗ nothing ran", tone="bad")
    return Cell(text=f"✓ {proven} candidate{'s' if proven > 1 else ''} proven", tone="good")


def _how(e: Evidence) -> Cell:
    if e.proven:
        return Cell(text=f"✓ {e.how}", tone="good", note=f"inside {e.through}" if e.through else "")
    return Cell(
        text="✗ not proven" if e.state == "applied" else f"○ {e.state}",
        tone="bad" if e.state == "applied" else "muted",
        note=e.why_not,
    )


def _names(e: Evidence) -> str:
    counted = [f"{name} x{n}" for found in (e.kernels, e.ops, e.in_graph) for name, n in found.items()]
    return ", ".join(counted[:6]) + (f" and {len(counted) - 6} more" if len(counted) > 6 else "") or NONE


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"
