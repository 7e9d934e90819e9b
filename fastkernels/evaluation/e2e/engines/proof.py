"""What the ranks of an engine say of themselves, as one: it holds only where it holds in every rank."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.patches.interposition import Evidence, Interposition
from fastkernels.patches.report import Report
from fastkernels.serving.worker_report import WorkerReport

OURS = re.compile(r"fastkernels\.errors\.(\w+: .*)")


def reports_of(answers: Sequence[str], *, ranks: int) -> list[WorkerReport]:
    """Raises EvaluationError where a rank is missing, or says something else than the others."""
    try:
        reports = [WorkerReport.model_validate_json(answer) for answer in answers]
    except ValidationError as error:
        raise EvaluationError(f"a worker's report is none: {str(error).splitlines()[0]}") from None
    if len(reports) != ranks:
        raise EvaluationError(f"{len(reports)} workers answered, of {ranks}")
    first = reports[0]
    for other in reports[1:]:
        if other.state != first.state or _states(other.patch) != _states(first.patch):
            raise EvaluationError(f"ranks differ in what stands on them: {first.summary}; {other.summary}")
    return reports


def windows_of(answers: Sequence[str], *, ranks: int) -> Interposition:
    """The windows of all ranks as one: counts are sums, and a task is proven where it is in every rank."""
    try:
        windows = [Interposition.model_validate_json(answer) for answer in answers]
    except ValidationError as error:
        raise EvaluationError(f"a worker's window is none: {str(error).splitlines()[0]}") from None
    if len(windows) != ranks:
        raise EvaluationError(f"{len(windows)} windows were told, of {ranks} ranks")
    return windows[0].model_copy(
        update={"tasks": {task: _together([w.tasks[task] for w in windows]) for task in windows[0].tasks}}
    )


def _together(ranks: list[Evidence]) -> Evidence:
    silent = [(number, seen) for number, seen in enumerate(ranks) if not seen.proven]
    first = silent[0][1] if silent else ranks[0]
    sums = {
        name: dict(sum((Counter(getattr(seen, name)) for seen in ranks), Counter()))
        for name in ("kernels", "ops", "bypassed")
    }
    why = first.why_not
    if silent and len(ranks) > 1:
        why = f"rank {silent[0][0]}: {why}"
    return first.model_copy(update={"calls": sum(seen.calls for seen in ranks), "why_not": why, **sums})


def why_refused(reports: Path, log: Path) -> str:
    """Why workers did not start, as far as they left it: in a report, or in the arm's log as an error of ours."""
    for file in sorted(reports.rglob("*.json")):
        try:
            report = WorkerReport.model_validate_json(file.read_text())
        except (OSError, ValidationError):
            continue
        if report.state == "unpatched" and report.reason:
            return report.reason
    told = OURS.search(log.read_text(errors="replace")) if log.is_file() else None
    return told.group(1) if told is not None else ""


def _states(report: Report | None) -> list[tuple[str, str, str]]:
    return [(s.path, s.task, s.state) for s in report.sites] if report is not None else []
