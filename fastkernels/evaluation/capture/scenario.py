"""``capture_scenario``: the entries of a scenario, each captured in a process of its own, workload by workload."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.in_worker import Asked
from fastkernels.evaluation.capture.job import DONE, CaptureJob
from fastkernels.evaluation.capture.preflight import require_runnable
from fastkernels.evaluation.capture.public import EAGER, public_name, write_public
from fastkernels.evaluation.capture.record import Capture, Values
from fastkernels.evaluation.capture.recorder import PER_KIND
from fastkernels.evaluation.capture.store import JSON, load_capture, require_free
from fastkernels.evaluation.e2e.arm import TAIL
from fastkernels.evaluation.e2e.engines.environment import environment_of
from fastkernels.evaluation.e2e.engines.weights import model_of, remove_drawn
from fastkernels.evaluation.e2e.evaluate import RESULTS_DIR, slug
from fastkernels.evaluation.e2e.scenario import Entry, Scenario, load_scenario
from fastkernels.evaluation.e2e.setup import Setup

MODULE = "fastkernels.evaluation.capture.worker"
LOG = "capture.log"
TIMEOUT_S = 3600.0
# A line of a traceback that names the exception; an engine puts the process and the time before it.
ERROR = re.compile(r"(^|[\s\]])[\w.]*(Error|Exception|Interrupt|Exit)\b: ")


def capture_scenario(
    scenario: str | Path | Scenario,
    *,
    values: Values = "none",
    out: str | Path | None = None,
    prompts: bool = False,
    max_bytes: int = 1 << 28,
    per_kind: int = PER_KIND,
    device: str | None = None,
    threads: int | None = None,
    only: Sequence[str] = (),
    graphs: bool = True,
    public: str | Path | None = None,
    timeout_s: float = TIMEOUT_S,
    name: str = "",
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Capture]:
    """Captures the workloads of a scenario's models: one capture a workload (and rank), each in a folder of ``out``.

    Args:
        scenario: a packaged one, a YAML file, or a Scenario, as ``fastkernels eval`` takes them.
        values, prompts, max_bytes, per_kind: as ``fastkernels.capture`` takes them.
        out: a folder; None for a new one in ``captures`` under ``$FASTKERNELS_RESULTS_DIR`` or ``~/.fastkernels``.
        device: ``cpu``, ``cuda``, ``cuda:1``; None for a GPU where there is one.
        threads: of the process on a CPU; None for half the cores.
        only: globs over the scenario's models.
        graphs: capture the code that compiled modes run, and compare with what their graphs see.
        public: a folder for the same captures in the public benchmark's format.
        timeout_s: of one entry.
        name: what the captures are called; without, each has its model's name.

    Raises:
        EvaluationError: the scenario is not as it must be, nothing of it matches ``only``, an entry cannot be run
            here, or captures lie in ``out`` already: all of that is asked before anything is loaded. Or an entry's
            process fails; the message has the end of its log.
    """
    chosen = scenario if isinstance(scenario, Scenario) else load_scenario(str(scenario))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // 2) if device == "cpu" else 0
    root = Path(out).expanduser() if out is not None else _default_folder(chosen.name)
    asked = Asked(values=values, prompts=prompts, max_bytes=max_bytes, per_kind=per_kind, name=name)
    entries = [(i, e) for i, e in enumerate(chosen.entries) if not only or any(fnmatch(e.model, g) for g in only)]
    if not entries:
        there = ", ".join(entry.model for entry in chosen.entries)
        raise EvaluationError(f"{chosen.name}: --only {' '.join(only)} matches none of its models: {there}.")
    require_runnable([entry for _, entry in entries], name=chosen.name, device=device)
    require_free(root, under=True)
    found: list[tuple[Entry, Capture]] = []
    for number, entry in entries:
        folder = root / f"{number:02d}-{slug(entry.model)}"
        CaptureJob(entry=entry, device=device, threads=threads, asked=asked, graphs=graphs).write(folder)
        on_progress(entry.model)
        captures = _run(entry, folder, device=device, threads=threads, timeout_s=timeout_s)
        found += [(entry, capture) for capture in captures]
    if public is not None:
        _write_public(found, Path(public).expanduser())
    return [capture for _, capture in found]


def _run(entry: Entry, folder: Path, *, device: str, threads: int, timeout_s: float) -> list[Capture]:
    environment = dict(os.environ)
    drawn = entry.engine != "hf" and entry.weights is not None and entry.weights.config is not None
    try:
        if drawn:
            _process("draw", entry, folder, environment, timeout_s)
        if entry.engine != "hf":
            setup = Setup(role="baseline", entry=entry, device=device, threads=threads, model=model_of(entry, folder))
            environment = environment_of(setup, folder, folder / "caches")
        _process("capture", entry, folder, environment, timeout_s)
    finally:
        if drawn:
            remove_drawn(folder)
    return [load_capture(file.parent) for file in sorted(folder.rglob(JSON))]


def _process(verb: str, entry: Entry, folder: Path, environment: dict[str, str], timeout_s: float) -> None:
    (folder / DONE).unlink(missing_ok=True)
    flags = ["-P"] if entry.engine != "hf" else []  # a checkout's metadata would hide the plugin that is installed
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *flags, "-m", MODULE, verb, str(folder.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    if not (folder / DONE).is_file():
        raise EvaluationError(f"{entry.model}: {failure(verb, folder / LOG, code, timeout_s)}")


def failure(verb: str, log: Path, code: int | None, timeout_s: float) -> str:
    """Why a process of an entry did not come to its end: the last error that its log names, or the log's end.

    Args:
        code: its exit status; negative for a signal, None where it was ended after ``timeout_s`` seconds.
    """
    how = f"exit status {code}"
    if code is None:
        how = f"no end within {timeout_s:.0f} s"
    elif code < 0:
        how = f"ended by {signal.Signals(-code).name}"
    text = log.read_text(errors="replace")
    named = [line.strip() for line in text.splitlines() if ERROR.search(line)]
    told = f"its last error: {named[-1][-TAIL:]}. All of it" if named else f"it ends with: {text[-TAIL:].strip()}. That"
    return f"the {verb} process failed ({how}); {told} is in {log}. Mend the entry, or leave its model out by --only."


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write_public(captures: Sequence[tuple[Entry, Capture]], folder: Path) -> None:
    """One file a capture of rank 0; where two would have one name, that of the later has its engine, or a number."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for entry, capture in captures:
        if capture.rank:
            continue
        layers = entry.weights.layers if entry.weights is not None else None
        name = public_name(
            capture, requests=capture.generation.get("requests", 0), seqs=entry.max_num_seqs, layers=layers
        )
        stem = name.removesuffix(EAGER)
        choices = [
            stem,
            f"{stem}_{capture.engine}",
            *(f"{stem}_{capture.engine}{n}" for n in range(2, len(captures) + 2)),
        ]
        name = next(choice for choice in choices if choice not in taken)
        taken.add(name)
        file = folder / f"{name}{EAGER}"
        if file.exists():
            raise EvaluationError(
                f"{file}: is there already, and is left as it is. Give another folder for the public format; the "
                f"captures lie in {capture.folder}."
            )
        write_public(capture, file)


def _default_folder(name: str) -> Path:
    root = Path(os.environ.get(RESULTS_DIR) or "~/.fastkernels").expanduser() / "captures"
    return root / f"{datetime.datetime.now(datetime.UTC).strftime('%Y%m%d-%H%M%S')}-{slug(name)}"
