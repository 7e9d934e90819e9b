"""One entry, from the oracle to the verdict. The order is fixed: references, the baseline's trial, the gate, the other
trials, rounds, checks, evidence."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.arm import ArmFailed
from fastkernels.evaluation.e2e.assemble import assemble
from fastkernels.evaluation.e2e.contest import SETTLE_SECONDS, Contest, Progress
from fastkernels.evaluation.e2e.engines.weights import remove_drawn
from fastkernels.evaluation.e2e.evidence import check_timed, gather
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.gate import answer_references, pass_gate
from fastkernels.evaluation.e2e.job import MODEL, JobSpec
from fastkernels.evaluation.e2e.journal import Covered, Journal
from fastkernels.evaluation.e2e.machine import machine
from fastkernels.evaluation.e2e.result import ModelResult
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.e2e.sizes import resolve
from fastkernels.evaluation.e2e.timing import run_rounds
from fastkernels.evaluation.e2e.trial import choose
from fastkernels.evaluation.scale.job import RECORDS
from fastkernels.evaluation.whole_file import whole_file


def run_entry(folder: Path, *, on_progress: Callable[[Progress], None] = lambda _: None) -> ModelResult:
    """Evaluates the job in ``folder``, or goes on with it; the result is also left there as ``model.json``.

    A failing candidate is a result with the score 0 and its reason, and no error.

    Raises:
        EvaluationError: the folder is no job, or its records are of another one.
    """
    spec, started = JobSpec.read(folder), time.monotonic()
    journal = Journal(folder / RECORDS)
    why = cannot_run(spec.entry)
    if why is not None:
        result = assemble(spec, None, (), journal, why=why, seconds=0.0)
    else:
        family = family_of(spec.entry.workloads[0], spec.entry.engine)
        workloads = resolve(spec.entry, family)
        journal.begin(
            spec.facts() | {"machine": machine(spec.device, [spec.entry.engine]).model_dump_json(exclude={"host"})}
        )
        if not finished(journal):
            contest = Contest(
                spec=spec,
                folder=folder,
                family=family,
                workloads=workloads,
                journal=journal,
                on_progress=on_progress,
            )
            try:
                _run(contest)
            except ArmFailed as failure:
                why = contest.record_failure(failure)
            finally:
                remove_drawn(folder)
        result = assemble(spec, family, workloads, journal, why=why or "", seconds=time.monotonic() - started)
    with whole_file(folder / MODEL) as path:
        path.write_text(result.model_dump_json(indent=1))
    return result


def cannot_run(entry: Entry) -> str | None:
    """Why an entry is a 0 before it is tried: what it asks for is not here. None where it can be tried.

    Raises:
        EvaluationError: what it asks for contradicts itself; the scenario is to be corrected.
    """
    why = entry.unsupported()
    if why is not None:
        return why
    try:
        family = family_of(entry.workloads[0], entry.engine)
    except EvaluationError as error:
        return f"{entry.model}: {error}"
    resolve(entry, family)
    return None


def finished(journal: Journal) -> bool:
    """Whether there is nothing left to run: it failed, is wrong, or the last of the records is there."""
    judged = [*journal.gated(), *journal.gated(after=True)]
    covered = any(isinstance(r, Covered) for r in journal.records)
    return covered or journal.failed() is not None or any(not c.passed for c in judged)


def _run(contest: Contest) -> None:
    """Raises ArmFailed where an arm does."""
    answer_references(contest)
    with contextlib.ExitStack() as stack:
        contest.load(stack)
        contest.warm()
        baseline = choose(contest, "baseline", contest.modes)
        working = [t.name for t in baseline.trials if t.seconds]
        if not pass_gate(contest, working):
            return
        choose(contest, "candidate", working)
        choose(contest, "null", [baseline.mode])
        for arm in contest.arms.values():
            arm.order("settle", timeout=SETTLE_SECONDS)
        run_rounds(contest, baseline)
        if check_timed(contest):
            gather(contest)
