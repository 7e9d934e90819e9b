"""``fastkernels.evaluate``: a scenario's models, patched against unpatched, each entry a job in a folder of the run."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from pydantic import ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.contest import Progress
from fastkernels.evaluation.e2e.job import CANDIDATES, MODEL, NAMED, JobSpec
from fastkernels.evaluation.e2e.machine import machine
from fastkernels.evaluation.e2e.result import ModelResult, RunResult
from fastkernels.evaluation.e2e.run_entry import cannot_run, run_entry
from fastkernels.evaluation.e2e.scenario import Scenario, load_scenario
from fastkernels.evaluation.scale.job import Event, Job, Outcome
from fastkernels.evaluation.scale.run_jobs import run_jobs
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.runtime.candidate import Lowering
from fastkernels.runtime.load import LEVELS, shipped_folder
from fastkernels.tasks import task_for_stem

RUN, RESULT = "run.json", "result.json"
RESULTS_DIR = "FASTKERNELS_RESULTS_DIR"


def evaluate(
    scenario: str | Path | Scenario,
    candidates: str | Path = "shipped",
    *,
    out: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    only: Sequence[str] = (),
    select: Sequence[str] = (),
    lowering: Lowering = "auto",
    verify: bool = True,
    gpus: int | None = None,
    ray_address: str | None = None,
    on_progress: Callable[[str, Progress], None] = lambda _, __: None,
) -> RunResult:
    """Measures what ``candidates`` gain on whole models, and whether outputs still hold.

    Three arms for each model, in processes of their own: ``baseline``, the strongest unpatched way to run it; ``null``,
    identity candidates at the candidate's sites; and ``candidate``. They visit each workload in turn (ABBA).
    Correctness is the gate before any timed round, is judged again after them, and holds for what timed calls returned.

    Args:
        scenario: a packaged one (``minimal``, ``default``, ``full``), a YAML file, or a Scenario.
        candidates: a folder with ``L1/*.py`` .. ``L4/*.py``, or ``"shipped"``, ``"reference"``, ``"identity"``.
        out: folder of the run. One that holds a part of the same run is continued: no finished block is run again.
            None for a new one in ``evals`` under ``$FASTKERNELS_RESULTS_DIR`` or ``~/.fastkernels``.
        device: ``cpu``, ``cuda``, ``cuda:1``; None for a GPU where there is one.
        threads: of each arm on a CPU; None for half the cores.
        only: globs over the models of the scenario: the others are left to other runs, which ``score`` merges.
        select: globs over the sites' ``path`` or ``path:task``; empty for all.
        lowering: how compiled graphs hold candidates, as in ``patch``.
        verify: whether ``patch`` tries each candidate at each site first; the gate judges it in any case.
        gpus: entries run side by side on so many devices. None for one entry after the other.
        ray_address: of a Ray cluster (``auto``, ``local``, host:port) on which entries run side by side.
        on_progress: called with an entry's name and how far it is.

    Returns:
        The result, which also lies in ``out`` as ``result.json``. A failing candidate is a result with the score 0.

    Raises:
        EvaluationError: the scenario or the candidates' folder is not as it must be, or ``out`` holds another run.
    """
    chosen = scenario if isinstance(scenario, Scenario) else load_scenario(str(scenario))
    if gpus is not None and device not in (None, "cuda", "cpu"):
        raise EvaluationError(f"device {device} is one, and gpus={gpus} gives each entry its own. Give one of the two.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // 2) if device == "cpu" else 0
    source = folder_of(candidates)
    name = str(candidates) if str(candidates) in NAMED else Path(candidates).name
    digests = digests_of(source) if source is not None else {name: name}
    settings = {
        "scenario digest": chosen.digest,
        "select": " ".join(select) or "all",
        "lowering": lowering,
        "verify": str(verify),
        "threads": str(threads),
    }
    folder = Path(out).expanduser() if out is not None else new_folder(chosen.name, name)
    run = RunResult(
        id=folder.name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        scenario=chosen.name,
        candidates=name,
        digests=digests,
        machine=machine(device, [entry.engine for entry in chosen.entries]),
        command=command_of(scenario, candidates, device=device, settings=settings, only=only, select=select),
        settings=settings,
        models=[],
    )
    run = begin(folder, run)
    specs: list[tuple[Path, JobSpec]] = []
    for number, entry in enumerate(chosen.entries):
        if only and not any(fnmatch(entry.model, glob) for glob in only):
            continue
        cannot_run(entry)  # a mistake in the scenario ends the run before its first model, not its last
        spec = JobSpec(
            entry=entry,
            candidates=name if name in NAMED else CANDIDATES,
            digests=digests,
            device=device,
            threads=threads,
            select=tuple(select),
            lowering=lowering,
            verify=verify,
        )
        job = folder / f"{number:02d}-{slug(entry.model)}"
        spec.write(job, source=source if name not in NAMED else None)
        specs.append((job, spec))
    if not specs:
        there = ", ".join(entry.model for entry in chosen.entries)
        raise EvaluationError(f"{chosen.name}: --only {' '.join(only)} matches none of its models: {there}.")
    if ray_address is None and gpus is None:
        for job, spec in specs:
            run_entry(job, on_progress=lambda p, name=spec.entry.model: on_progress(name, p))  # type: ignore[misc]
        ended: dict[Path, Outcome] = {}
    else:
        ended = side_by_side(specs, gpus=gpus, ray_address=ray_address, on_progress=on_progress)
    jobs = sorted({*(job for job, _ in specs), *(file.parent for file in folder.glob(f"*/{MODEL}"))})
    run.models = [_left_in(job, ended.get(job)) for job in jobs]  # of an earlier --only too
    write(folder / RESULT, run)
    return run


def folder_of(candidates: str | Path) -> Path | None:
    """The folder behind ``candidates``; None for sets that have none.

    Raises:
        EvaluationError: it is neither a name nor a folder.
    """
    if str(candidates) in NAMED:
        return shipped_folder() if str(candidates) == "shipped" else None
    if not isinstance(candidates, (str, Path)):
        raise EvaluationError(
            f"candidates: each arm is a process of its own, which a {type(candidates).__name__} cannot be sent to. "
            f"Give a folder with L1/*.py .. L4/*.py, or one of {', '.join(NAMED)}."
        )
    folder = Path(candidates).expanduser()
    if not folder.is_dir() or not any((folder / level).is_dir() for level in LEVELS):
        raise EvaluationError(f"candidates: {folder} is no folder with L1/*.py .. L4/*.py in it.")
    return folder


def digests_of(folder: Path) -> dict[str, str]:
    """Content hashes by task, of files that are read and not run: this process owns the clock and the verdict.

    What is no candidate by its place, and may be imported by one, has a hash of its own.
    """
    found: dict[str, str] = {}
    for level in LEVELS:
        for file in sorted((folder / level).glob("*.py")):
            if file.name.startswith("_"):
                continue
            task = task_for_stem(int(level[1:]), file.stem)
            found[task.name if task else f"{level}/{file.stem}"] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    named = {file for level in LEVELS for file in (folder / level).glob("[!_]*.py")}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f not in named and "__pycache__" not in f.parts):
        found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    if not found:
        raise EvaluationError(f"candidates: {folder} holds no L1/*.py .. L4/*.py.")
    return found


def new_folder(scenario: str, candidates: str) -> Path:
    """A folder for a run that begins now."""
    root = Path(os.environ.get(RESULTS_DIR) or "~/.fastkernels").expanduser() / "evals"
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return root / f"{stamp}-{slug(scenario)}-{slug(candidates)}"


def slug(text: str) -> str:
    """A name for a folder.

    >>> slug("meta-llama/Llama-3.1-8B")
    'meta-llama-Llama-3.1-8B'
    """
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in text).strip("-.") or "run"


def begin(folder: Path, run: RunResult) -> RunResult:
    """Writes what the run is, or takes the date and the id of the run that is continued.

    Raises:
        EvaluationError: the folder holds another run.
    """
    file = folder / RUN
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(file, run)
        return run
    try:
        former = RunResult.model_validate_json(file.read_text())
    except ValidationError as error:
        raise EvaluationError(
            f"{file} is no run of this version ({str(error).splitlines()[0]}). Give another --out."
        ) from None
    for name in ("scenario", "candidates", "digests", "settings", "protocol", "machine"):
        then, now = getattr(former, name), getattr(run, name)
        if then != now:
            raise EvaluationError(
                f"{folder} holds a run with another {name} ({then} then, {now} now), which cannot be continued as this "
                "one. Give another --out."
            )
    return former


def side_by_side(
    specs: Sequence[tuple[Path, JobSpec]],
    *,
    gpus: int | None,
    ray_address: str | None,
    on_progress: Callable[[str, Progress], None],
) -> dict[Path, Outcome]:
    """Entries as jobs on several devices or nodes; how each folder's ended."""
    jobs = [
        Job(
            name=f"{job.name} {spec.entry.model}",
            folder=job,
            command=(sys.executable, "-m", "fastkernels.evaluation.e2e.job", "{folder}"),
            gpus=spec.entry.tp if spec.device != "cpu" else 0,
        )
        for job, spec in specs
    ]
    models = {job.name: spec.entry.model for job, (_, spec) in zip(jobs, specs, strict=True)}

    def follow(event: Event) -> None:
        done = event.records if event.kind == "progressed" else 0
        on_progress(models[event.job], Progress(phase=f"{event.kind}, {done} records", done=done))

    outcomes = run_jobs(jobs, gpus=gpus, ray_address=ray_address, on_event=follow)
    return {job.folder: outcome for job, outcome in zip(jobs, outcomes, strict=True)}


def _left_in(folder: Path, outcome: Outcome | None) -> ModelResult:
    """The result in a job's folder; a job that left none is a result with the score 0."""
    file = folder / MODEL
    if file.is_file():
        return ModelResult.model_validate_json(file.read_text())
    entry = JobSpec.read(folder).entry
    family = entry.workloads[0].partition(".")[0]
    return ModelResult(
        model=entry.model,
        family=family,
        category=entry.category or family.lower(),
        dtype=entry.dtype,
        tp=entry.tp,
        weights="",
        valid=False,
        passed=False,
        reason=f"its job left no result: {outcome.reason if outcome is not None else 'it ended early'}",
    )


def command_of(
    scenario: str | Path | Scenario,
    candidates: str | Path,
    *,
    device: str,
    settings: dict[str, str],
    only: Sequence[str],
    select: Sequence[str],
) -> str:
    """The command line that makes the same run."""
    words = ["fastkernels", "eval", scenario.name if isinstance(scenario, Scenario) else str(scenario)]
    words += ["--candidates", str(candidates), "--device", device]
    if device == "cpu":
        words += ["--threads", settings["threads"]]
    for option, globs in (("--only", only), ("--select", select)):
        for glob in globs:
            words += [option, glob]
    if settings["lowering"] != "auto":
        words += ["--lowering", settings["lowering"]]
    if settings["verify"] != "True":
        words += ["--no-verify"]
    return shlex.join(words)


def write(file: Path, run: RunResult) -> None:
    """Whole or not at all."""
    with whole_file(file) as path:
        path.write_text(json.dumps(run.model_dump(mode="json"), indent=1) + "\n")
