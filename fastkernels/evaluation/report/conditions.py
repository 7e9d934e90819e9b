"""What a report says of the circumstances: the baseline's trials, devices, arms' processes, versions, commands."""

from __future__ import annotations

import shlex

from fastkernels.evaluation.e2e.result import ModelResult, RunResult
from fastkernels.evaluation.report.arms import NAMES
from fastkernels.evaluation.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Details,
    Section,
    Table,
    Text,
    columns,
    row,
)
from fastkernels.evaluation.report.numbers import NONE, gibibytes, number
from fastkernels.evaluation.report.verdict import counts, why

TAIL_LINES = 40


def measured_on(run: RunResult) -> str:
    """The machine in a few words: device, number, torch."""
    count = f"{run.machine.count} x " if run.machine.count > 1 else ""
    torch = run.machine.versions.get("torch")
    return f"{count}{run.machine.device}" + (f", torch {torch}" if torch else "")


def trial_blocks(model: ModelResult, on: str) -> list[Block]:
    """The unpatched ways that were timed, of which the strongest is the baseline."""
    if not model.trials:
        return []
    names = list(dict.fromkeys(name for t in model.trials for name in t.seconds))
    table = Table(
        caption=f"Unpatched ways, of which the strongest is the baseline; seconds of one pass. Timed on {on}.",
        columns=columns("way", "choice", *(Column(heading=n, kind="number") for n in names)),
        rows=[
            row(
                t.name,
                Cell(text="✓ baseline", tone="good")
                if t.chosen
                else Cell(text="○ not it", tone="muted", note=t.reason),
                *(number(t.seconds.get(name), "s") for name in names),
            )
            for t in model.trials
        ],
    )
    return [table]


def device_blocks(model: ModelResult, on: str) -> list[Block]:
    """What each arm's process took, and the device's readings by workload and arm."""
    processes = Table(
        caption=f"Each arm's process, on {on}.",
        columns=columns("arm", "state", "mode", "peak memory#", "launches/step#", "load#", "patch#", "warm-up#"),
        rows=[
            row(
                NAMES[name],
                Cell(text="✓ finished", tone="good") if a.state == "finished" else Cell(text="✗ failed", tone="bad"),
                a.mode or NONE,
                gibibytes(a.peak_memory_bytes),
                number(a.launches_per_step),
                number(a.load_seconds, "s"),
                number(a.patch_seconds, "s"),
                number(a.warmup_seconds, "s"),
            )
            for name, a in model.arms.items()
        ],
    )
    readings = [(w, arm, s) for w in model.workloads for arm, s in w.arms.items()]
    if not readings:
        return [processes]
    device = Table(
        caption=f"Device readings, medians over accepted blocks; a block is rejected where it throttled. Read on {on}.",
        columns=columns("workload", "arm", "blocks#", "rejected#", "clock#", "power#", "temperature#", "energy#"),
        rows=[
            row(
                w.workload.name,
                NAMES[arm],
                str(s.blocks),
                _rejected(s.rejected),
                number(s.megahertz, "MHz"),
                number(s.watts, "W"),
                number(s.celsius, "°C"),
                "withheld" if arm == "candidate" and not counts(model) else _energy(s.joules_per_unit, w.unit),
            )
            for w, arm, s in readings
        ],
    )
    return [processes, device]


def _rejected(count: int) -> Cell:
    return Cell(text=f"! {count}", tone="warn") if count else Cell(text="0")


def _energy(joules: float | None, unit: str) -> str:
    """Energy of one token, sentence or image.

    >>> _energy(0.8, "tokens")
    '800 mJ/token'
    """
    return NONE if joules is None else number(1000 * joules, f"mJ/{unit.removesuffix('s')}")


def failure_blocks(model: ModelResult) -> list[Block]:
    """The ends of the logs of arms that failed."""
    blocks: list[Block] = []
    for name, arm in model.arms.items():
        if arm.state == "failed":
            if not arm.reason or arm.reason not in why(model):  # that stands above already
                blocks.append(Text(text=f"✗ {NAMES[name]}: {arm.reason or 'it says not why'}", tone="bad"))
            if arm.log_tail:
                whole = f"; whole in {arm.log}, beside the result" if arm.log else ""
                blocks.append(Text(text=f"The last lines of the log of the {NAMES[name]}{whole}:", tone="muted"))
                lines = arm.log_tail.rstrip().splitlines()[-TAIL_LINES:]
                blocks.append(Code(text="\n".join(lines), label=f"end of the log of the {name} arm"))
    return blocks


def provenance(run: RunResult) -> Section:
    """Versions, candidates by content, settings, and how to run it again."""
    versions = Table(
        caption=f"Versions on {run.machine.device}.",
        columns=columns("package", "version"),
        rows=[row(name, version) for name, version in run.machine.versions.items()],
    )
    digests = Table(
        caption=f"Candidates of {run.candidates}, by content.",
        columns=columns("task", "digest$"),
        rows=[row(task, digest) for task, digest in run.digests.items()] or [row("none", NONE)],
    )
    facts = {
        "run": run.id,
        "date": run.date,
        "scenario": run.scenario,
        "protocol": str(run.protocol),
        "device": f"{run.machine.count} x {run.machine.device}",
        "host": run.machine.host or NONE,
        **run.settings,
    }
    settings = Table(
        caption=f"The run and its settings, on {run.machine.device}.",
        columns=columns("setting", "value$"),
        rows=[row(name, value) for name, value in facts.items()],
    )
    weights = Table(
        caption=f"Models, where their weights came from, and how long each took on {run.machine.device}.",
        columns=columns("model", "dtype", "tp#", "parameters#", "weights", "took#"),
        rows=[
            row(
                m.model,
                m.dtype,
                str(m.tp),
                number(m.parameters / 1e6, "M") if m.parameters else NONE,
                m.weights,
                number(m.seconds, "s"),
            )
            for m in run.models
        ],
    )
    return Section(
        title="Versions and commands",
        blocks=[
            Text(text="To reproduce, on the same device and versions:"),
            Code(text=commands(run), label="commands that reproduce the run and this report"),
            weights,
            settings,
            versions,
            Details(summary=f"Candidates by content ({len(run.digests)})", blocks=[digests]),
        ],
    )


def commands(run: RunResult) -> str:
    """The versions to install, the run, then this report of it."""
    names = ("torch", "transformers", "triton")
    pins = [f"{name}=={run.machine.versions[name]}" for name in names if name in run.machine.versions]
    install = [f"pip install {shlex.join(pins)} 'fastkernels[report]'"] if pins else []
    runs = run.command.splitlines()  # several where the run was merged
    folders = ["run"] if len(runs) == 1 else [f"run{i}" for i in range(1, len(runs) + 1)]
    again = [f"{command} --out {folder}" for command, folder in zip(runs, folders, strict=True)]
    return "\n".join([*install, *again, f"fastkernels report {' '.join(folders)} -o report.html"])
