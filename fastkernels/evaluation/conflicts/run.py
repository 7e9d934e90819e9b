"""The conflict matrix of candidates: every stage in a process of its own, then blame, then the mended candidate."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from fastkernels.errors import CandidateError
from fastkernels.evaluation.conflicts.blame import FATAL, SYMPTOMS, blame
from fastkernels.evaluation.conflicts.codes import CODES
from fastkernels.evaluation.conflicts.job import Job, Result
from fastkernels.evaluation.conflicts.pool import Worker
from fastkernels.evaluation.conflicts.report import Cell, ConflictReport, Environment, Finding
from fastkernels.evaluation.conflicts.stages import STAGES
from fastkernels.evaluation.conflicts.subject import BUCKETS
from fastkernels.evaluation.conflicts.target import Target, targets_of

STAGES_AT_A_TIME = 8  # at most; on a device each holds a CUDA context of its own
ENGINES = ("transformers", "vllm", "sglang")


def conflicts(
    candidate_or_folder: Any,
    *,
    stages: Sequence[str] | None = None,
    buckets: Sequence[int] | None = None,
    timeout: float = 120.0,
) -> ConflictReport:
    """Runs candidates through the compile stack, stage by stage, and says what breaks, why, and the way out.

    Args:
        candidate_or_folder: a folder of candidates, one file, a ``Candidate``, or a class marked as one.
        stages: only these; ``import`` always runs. None for all.
        buckets: batch sizes, in rows, to redraw the task's small cases to. None for 1, 2, 7, 8, 16, 17, 64.
        timeout: seconds that one stage may take before it is a HANG.

    Raises:
        CandidateError: nothing to test there, no such stage, or a bucket below 1.
    """
    started = time.monotonic()
    chosen = _chosen(stages)
    if buckets is not None and (not buckets or min(buckets) < 1):
        raise CandidateError(f"conflicts: buckets are row counts of at least 1, not {list(buckets)}.")
    device = "cpu"
    cells: list[Cell] = []
    with Worker() as worker:
        for target in targets_of(candidate_or_folder):
            job = Job(
                target=target,
                stages=[],
                buckets=list(buckets or BUCKETS),
                timeout=timeout,
                parallel=max(1, min(STAGES_AT_A_TIME, os.cpu_count() or 1)),
            )
            found, device = _matrix(worker, job, chosen)
            cells += found
    return ConflictReport(cells=cells, environment=_environment(device), seconds=time.monotonic() - started)


def _chosen(stages: Sequence[str] | None) -> list[str]:
    unknown = [s for s in stages or () if s not in STAGES]
    if unknown:
        raise CandidateError(f"conflicts: no stage {', '.join(unknown)}. Stages: {', '.join(STAGES)}.")
    return [s for s in STAGES if stages is None or s == "import" or s in stages]


def _matrix(worker: Worker, job: Job, chosen: list[str]) -> tuple[list[Cell], str]:
    """The cells of one candidate, in stage order, and the device they were measured on."""
    results: dict[str, Result] = {}
    device = "cpu"
    for gate in (["import"], ["eager"], [s for s in chosen if s not in ("import", "eager")]):
        asked = [s for s in gate if s in chosen]
        stop = _stopped(results)
        if stop is not None:
            results |= {s: Result(stage=s, outcome="skip", reason=stop) for s in asked}
        elif asked:
            for result in worker.results_of(job.model_copy(update={"stages": asked})):
                results[result.stage] = result
                device = result.device if result.device != "cpu" else device
    task = next((r.task for r in results.values() if r.task), "")
    cells = [_cell(job.target, task, results[s]) for s in chosen]
    blame(cells)
    _mended(worker, job, cells, cuda=any(r.cuda for r in results.values()))
    return cells, device


def _stopped(results: dict[str, Result]) -> str | None:
    """Why nothing more can be run, or None."""
    for result in results.values():
        codes = {f.code for f in result.findings}
        if result.outcome == "skip" and result.stage in ("import", "eager"):
            return result.reason
        if codes & FATAL and (result.stage == "import" or codes <= FATAL):
            return f"{result.stage} failed: {min(codes & FATAL)}"
    return None


def _cell(target: Target, task: str, result: Result) -> Cell:
    cell = Cell(
        candidate=target.label,
        task=task,
        stage=result.stage,
        status="skip" if result.outcome == "skip" else "pass",
        reason=result.reason,
        seconds=round(result.seconds, 2),
    )
    if not result.findings:
        return cell
    first = _first(result.findings)
    code = CODES[first.code]
    cell.status = "skip" if first.advisory else "fail"
    cell.code, cell.severity, cell.silent, cell.mend = code.name, code.severity, code.silent, code.mend
    if first.advisory:
        cell.severity, cell.reason = "warning", "not what the candidate is declared for"
    cell.also = sorted({f.code for f in result.findings} - {first.code})
    cell.buckets = list(dict.fromkeys(f.bucket for f in result.findings if f.code == first.code and f.bucket))
    cell.evidence, cell.predicted = first.evidence, first.predicted
    return cell


def _first(findings: Sequence[Finding]) -> Finding:
    """The finding that the cell reports: errors before warnings, named mechanisms before symptoms, then the first."""
    return min(findings, key=lambda f: (CODES[f.code].severity != "error", f.code in SYMPTOMS))


def _mended(worker: Worker, job: Job, cells: list[Cell], *, cuda: bool) -> None:
    """Runs failing cells that have an automatic mend once more, with the candidate behind an opaque operator: its own
    stage where that is the mend, Inductor's graph partition where the operator is to stay out of CUDA graphs."""
    there = importlib.util.find_spec("fastkernels.runtime.opaque") is not None
    again: dict[str, str] = {}  # stage of the cell: stage to run
    for cell in cells:
        if cell.status != "fail" or cell.mend is None:
            continue
        if cell.mend.automatic is None:
            cell.after_mend = "not run (no automatic mend)"
        elif not there:
            cell.after_mend = "not run (no opaque lowering)"
        elif cell.mend.automatic == "partition" and not cuda:
            cell.after_mend = "not run (partition needs CUDA)"
        else:
            again[cell.stage] = "graph_partition" if cell.mend.automatic == "partition" else cell.stage
    if not again:
        return
    stages = list(dict.fromkeys(again.values()))
    results = {r.stage: r for r in worker.results_of(job.model_copy(update={"stages": stages, "mended": True}))}
    for cell in cells:
        if cell.stage in again:
            result = results[again[cell.stage]]
            after = _cell(job.target, cell.task, result)
            said = f"fail: {after.code} {after.evidence.text}"[:300] if after.status == "fail" else "pass"
            cell.after_mend = f"not run ({result.reason})" if result.outcome == "skip" else said


def _environment(device: str) -> Environment:
    versions = {name: importlib.metadata.version(name) for name in ENGINES if importlib.util.find_spec(name)}
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None
    return Environment(
        python=platform.python_version(), torch=torch.__version__, triton=triton, device=device, versions=versions
    )
