"""``fastkernels score``: MacroEval's score of runs, merged by candidate set; several sets side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.errors import EvaluationError

if TYPE_CHECKING:
    from fastkernels.evaluation.macroeval.leaderboard import Leaderboard
    from fastkernels.evaluation.macroeval.result import Score


def score(
    results: Annotated[list[Path], typer.Argument(help="result.json files, or folders of runs.")],
    force: Annotated[
        bool, typer.Option("--force", help="Mix runs that differ in device, versions, scenario or protocol.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The whole leaderboard as JSON instead.")] = False,
) -> None:
    """Scores runs: speed x correctness x coverage, failures as 0. Runs of one candidate set become one."""
    from fastkernels.evaluation.macroeval.leaderboard import leaderboard  # these imports take seconds
    from fastkernels.evaluation.macroeval.load import load_run

    try:
        board = leaderboard([load_run(path) for path in results], force=force)
    except EvaluationError as error:
        fail("score", str(error))
    if json:
        typer.echo(board.model_dump_json(indent=2))
    else:
        show(Console(), board)


def show(console: Console, board: Leaderboard) -> None:
    """Prints the sets ranked, where there are several, then each set's categories and models."""
    if len(board.standings) > 1:
        console.print(ranking(board))
        console.print()
    for standing in board.standings:
        s = standing.score
        console.print(f"[bold]{escape(s.candidates)}[/] {s.digest}, scenario {escape(s.scenario)}, {escape(s.device)}")
        console.print(breakdown(s))
        product = f"S {s.S.value:.3f} x C {s.C:.3f} x Cov {s.Cov:.3f}"
        console.print(f"[bold]score {s.score.value:.3f}[/] [dim]{_interval(s)}[/] = {product}")
        over = "none" if s.S_passed is None else f"{s.S_passed.value:.3f}"
        console.print(f"[dim]S over passed {over}, not scored; A/A noise {s.noise:.1%}; intervals are 95%.[/]")
        for note in s.notes:
            console.print(f"[yellow]{escape(note)}[/]")
        console.print()


def ranking(board: Leaderboard) -> Table:
    """A row for each candidate set."""
    table = new_table("#", "candidates", "score", "95%", "S", "C", "Cov", "note", right=("#", "score", "S", "C", "Cov"))
    for standing in board.standings:
        s = standing.score
        cells = (f"{s.score.value:.3f}", _interval(s), f"{s.S.value:.3f}", f"{s.C:.3f}", f"{s.Cov:.3f}")
        name = f"{escape(s.candidates)}\n[dim]{s.digest}[/]"
        table.add_row(str(standing.rank), name, *cells, f"[yellow]{escape(board.told(standing))}[/]")
    return table


def breakdown(score: Score) -> Table:
    """A row for each category, and under it one for each of its models."""
    table = new_table("category and model", "S", "95%", "C", "Cov", "thru, lat, or why not", right=("S", "C", "Cov"))
    for c in score.categories:
        cells = (f"{c.S.value:.3f}", f"{c.S.low:.3f}-{c.S.high:.3f}", f"{c.C:.3f}", f"{c.Cov:.3f}")
        table.add_row(
            *(f"[bold]{cell}[/]" for cell in (escape(c.category), *cells)), f"{c.passed} of {c.models} passed"
        )
        for m in score.models:
            if m.category != c.category:
                continue
            if m.speed is None or m.thru is None or m.lat is None:
                table.add_row(f"  {escape(m.model)}", "[red]failed[/]", "", "0.000", "", f"[red]{escape(m.reason)}[/]")
            else:
                speed = (f"{m.speed.value:.3f}", f"{m.speed.low:.3f}-{m.speed.high:.3f}")
                ways = f"{m.thru.value:.3f}, {m.lat.value:.3f}"
                table.add_row(f"  {escape(m.model)}", *speed, f"{m.C:.3f}", "", ways)
    return table


def _interval(score: Score) -> str:
    return f"{score.score.low:.3f}-{score.score.high:.3f}"
