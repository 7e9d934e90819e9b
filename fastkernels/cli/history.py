"""``fastkernels history``: how the score of a candidate set went from run to run."""

from __future__ import annotations

import json as jsonlib
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.errors import EvaluationError

if TYPE_CHECKING:
    from fastkernels.evaluation.lineage.row import HistoryRow


def history(
    source: Annotated[
        str | None, typer.Argument(metavar="[PATH_OR_URI]", help="A folder of runs, or a tracking URI of MLflow.")
    ] = None,
    candidate: Annotated[
        str | None, typer.Option(help="Only runs of candidates of this name, or whose digest starts so.")
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Only runs of this scenario.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The rows as JSON instead.")] = False,
) -> None:
    """One row a run, oldest first: its score, and the change against the run before it. Noise is no change.

    The default is where eval writes: evals in FASTKERNELS_RESULTS_DIR, or in ~/.fastkernels.
    """
    from fastkernels.evaluation.lineage.history import history as rows_of  # these imports take seconds

    given = source or os.path.join(os.environ.get("FASTKERNELS_RESULTS_DIR") or "~/.fastkernels", "evals")
    try:
        rows = rows_of(given, candidate=candidate, scenario=scenario)
    except EvaluationError as error:
        fail("history", str(error))
    if json:
        typer.echo(jsonlib.dumps([row.model_dump() for row in rows], indent=2))
        return
    console = Console()
    console.print(table(rows))
    console.print(
        "[dim]change: against the run before of the same candidates by name, scenario, device, protocol, models and "
        "settings; none where the 95% intervals overlap or the A/A noise is as large.[/]"
    )


def table(rows: list[HistoryRow]) -> Table:
    """A row for each run."""
    numbers = ("score", "S", "C", "Cov")
    made = new_table("date", "candidates", "scenario, device", "score", "95%", "S", "C", "Cov", "change", right=numbers)
    before: dict[str, HistoryRow] = {}
    for row in rows:
        last = before.get(row.before) if row.before is not None else None
        before[row.id] = row
        made.add_row(
            row.date[:16].replace("T", " "),
            f"{escape(row.candidates)}\n[dim]{row.digest}[/]",
            f"{escape(row.scenario)}\n[dim]{escape(row.device)}[/]",
            f"{row.score.value:.3f}",
            f"{row.score.low:.3f}-{row.score.high:.3f}",
            *(f"{value:.3f}" for value in (row.S, row.C, row.Cov)),
            f"{_coloured(row)}{_versions(row, last)}",
        )
    return made


def _coloured(row: HistoryRow) -> str:
    if not row.apart:
        return f"[dim]{row.told()}[/]"
    return f"[{'red' if (row.difference or 0) < 0 else 'green'}]{row.told()}[/]"


def _versions(row: HistoryRow, before: HistoryRow | None) -> str:
    """Libraries that are not what they were: another cause than the candidate."""
    if before is None:
        return ""
    names = sorted(row.versions.keys() | before.versions.keys())
    moved = [n for n in names if row.versions.get(n) != before.versions.get(n)]
    told = (f"{n} {before.versions.get(n, 'none')} to {row.versions.get(n, 'none')}" for n in moved)
    return "".join(f"\n[dim]{escape(t)}[/]" for t in told)
