"""The report of runs in one of its three forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import RunResult
from fastkernels.evaluation.report.judged import judge
from fastkernels.evaluation.report.markdown import markdown
from fastkernels.evaluation.report.page import page
from fastkernels.evaluation.report.view import view

SUFFIXES = (".html", ".md", ".json")


def render(runs: Sequence[RunResult], suffix: str = ".html") -> str:
    """One report over the runs: a self-contained page (``.html``), Markdown (``.md``), or the runs with verdicts and
    scores (``.json``: a list of ``{"verdict", "score", "run"}``).

    Raises:
        EvaluationError: no runs, another suffix, or a page without jinja2 or plotly.
    """
    if suffix not in SUFFIXES:
        raise EvaluationError(f"a report ends in {', '.join(SUFFIXES)}, not in '{suffix}'.")
    if suffix != ".json":
        document = view(runs)
        return page(document) if suffix == ".html" else markdown(document)
    if not runs:
        raise EvaluationError("nothing to report on: give a run's folder or its result.json.")
    whole = [
        {
            "verdict": {"state": j.verdict.state, "sentence": j.verdict.sentence},
            "score": j.score.model_dump(mode="json") if j.score else {"reason": j.unscored},
            "run": j.run.model_dump(mode="json"),
        }
        for j in judge(runs)
    ]
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def write_report(runs: Sequence[RunResult], file: Path) -> None:
    """Writes the report in the form that the file's suffix names.

    Raises:
        EvaluationError: as ``render``, or the file cannot be written.
    """
    text = render(runs, file.suffix)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written: {error.strerror}. Give another file with -o.") from error
