"""How a candidate's score went over time, from a folder of runs or from MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.lineage.mlflow_store import logged_rows
from fastkernels.evaluation.lineage.row import HistoryRow, history_row
from fastkernels.evaluation.macroeval.leaderboard import overlap
from fastkernels.evaluation.macroeval.load import RESULT, load_run
from fastkernels.evaluation.macroeval.score import score

SQLITE = b"SQLite format 3\0"


def history(
    uri_or_folder: str | Path, *, candidate: str | None = None, scenario: str | None = None
) -> list[HistoryRow]:
    """One row a run, oldest first, each against the run before it of the same candidates (by name), scenario, device,
    protocol, models and settings.

    Args:
        uri_or_folder: a tracking URI of MLflow, its SQLite file, or a folder with ``result.json`` files at any depth.
        candidate: only runs of this name, or with a candidate, or candidate set, whose digest starts so.
        scenario: only runs of this scenario.

    Raises:
        EvaluationError: no runs there, or none that match; a store that cannot be read; a broken ``result.json``.
    """
    rows = sorted(_rows(uri_or_folder), key=lambda r: r.date)
    if not rows:
        raise EvaluationError(
            f"{uri_or_folder}: no evaluation there. Give a folder of runs, or a tracking URI of MLflow."
        )
    chosen = [r for r in rows if _matches(r, candidate) and scenario in (None, r.scenario)]
    if not chosen:
        named = ", ".join(dict.fromkeys(f"{r.candidates} ({r.digest}) in {r.scenario}" for r in rows))
        asked = " ".join(f"--{k} {v}" for k, v in (("candidate", candidate), ("scenario", scenario)) if v is not None)
        raise EvaluationError(f"{uri_or_folder}: no run matches {asked}. There are: {named}.")
    return compared(chosen)


def compared(rows: Sequence[HistoryRow]) -> list[HistoryRow]:
    """The rows, oldest first, each with its change against the last comparable one before it."""
    last: dict[tuple[str, str], HistoryRow] = {}
    found = []
    for row in rows:
        key = (row.candidates, row.conditions)
        found.append(_against(row, last[key]) if key in last else row)
        last[key] = row
    return found


def _against(row: HistoryRow, before: HistoryRow) -> HistoryRow:
    difference = row.score.value / before.score.value - 1 if before.score.value else None
    apart = not overlap(row.score, before.score)
    if difference is not None:  # a machine may differ more from run to run than its rounds within one tell
        apart = apart and abs(difference) > max(row.noise, before.noise)
    return row.model_copy(update={"before": before.id, "difference": difference, "apart": apart})


def _rows(source: str | Path) -> list[HistoryRow]:
    if "://" in str(source):
        return logged_rows(str(source))
    path = Path(source).expanduser()
    if path.is_file() and path.read_bytes()[: len(SQLITE)] == SQLITE:
        return logged_rows(f"sqlite:///{path.resolve()}")
    if not path.exists():
        raise EvaluationError(f"{path}: no such folder. Give a folder of runs, or a tracking URI of MLflow.")
    files = sorted(path.rglob(RESULT)) if path.is_dir() else [path]
    rows = (history_row(run, score(run)) for run in map(load_run, files))
    return list({row.key: row for row in rows}.values())  # a copy of a run is no second run


def _matches(row: HistoryRow, candidate: str | None) -> bool:
    if candidate is None or candidate == row.candidates:
        return True
    return bool(candidate) and any(d.startswith(candidate) for d in (row.digest, *row.digests.values()))
