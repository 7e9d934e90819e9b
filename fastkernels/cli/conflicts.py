"""``fastkernels conflicts``: what of the compile stack a candidate breaks, why, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fastkernels
from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.evaluation.conflicts.html import as_html
from fastkernels.evaluation.conflicts.report import Cell, ConflictReport

COLOURS = {"pass": "green", "fail": "red", "skip": "bright_black"}


def conflicts(
    path: Annotated[Path, typer.Argument(help="A candidate folder (L1/*.py .. L4/*.py) or one candidate file.")],
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage (and import); repeatable.")] = None,
    bucket: Annotated[list[int] | None, typer.Option(help="A batch size in rows; repeatable.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one stage may take.", min=1.0)] = 120.0,
    json: Annotated[bool, typer.Option("--json", help="The whole report as JSON instead.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the matrix as one self-contained page.")] = None,
) -> None:
    """Runs candidates through the compile stack, each stage in its own process. Exit status 1: a contract fails."""
    try:
        report = fastkernels.conflicts(path, stages=stage, buckets=bucket, timeout=timeout)
    except fastkernels.FastkernelsError as error:
        fail("conflicts", str(error))
    if html is not None:
        try:
            html.write_text(as_html(report), encoding="utf-8")
        except OSError as error:
            fail("conflicts", f"{html} cannot be written: {error.strerror}. Give another file.")
    if json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        show(Console(), report)
    if report.failed:
        raise typer.Exit(1)


def show(console: Console, report: ConflictReport) -> None:
    """Prints each candidate's matrix and a closing line."""
    for candidate in report.candidates():
        cells = report.of(candidate)
        roots = [c for c in cells if c.root_cause]
        verdict = ", ".join(f"[red]{c.code}[/] at {c.stage}" for c in roots) or "[green]no conflict[/]"
        console.print(f"[bold]{escape(candidate)}[/] {cells[0].task}: {verdict}")
        console.print(matrix(cells))
        console.print()
    e = report.environment
    console.print(
        f"[dim]candidates: {len(report.candidates())}, failing contract cells: {len(report.failed)}; torch {e.torch}, "
        f"{e.device}, {report.seconds:.0f} s. Skipped is not passed.[/]"
    )


def matrix(cells: list[Cell]) -> Table:
    """A row for each stage; skips for one reason share a row."""
    table = new_table("stage", "result", "code, evidence and mend", right=())
    skipped: dict[str, list[str]] = {}
    for cell in cells:
        if cell.status == "skip" and cell.code is None:
            skipped.setdefault(cell.reason, []).append(cell.stage)
        else:
            table.add_row(cell.stage, f"[{COLOURS[cell.status]}]{cell.status}[/]", about(cell))
    for reason, stages in skipped.items():
        table.add_row(escape("\n".join(stages)), f"[{COLOURS['skip']}]skip[/]", f"[dim]{escape(reason)}[/]")
    return table


def about(cell: Cell) -> str:
    """What a cell says, in a few lines; a plain pass says little or nothing."""
    if cell.code is None:
        return f"[dim]{escape(cell.reason)}[/]" if cell.reason else ""
    kind = [
        w
        for w, true in (("root cause", cell.root_cause), ("silent", cell.silent), ("predicted", cell.predicted))
        if true
    ]
    lines = [f"[bold]{cell.code}[/] ({', '.join([cell.severity or '', *kind])})"]
    if cell.caused_by:
        lines.append(f"follows from {cell.caused_by}")
    if cell.evidence.file:
        lines.append(f"[cyan]{escape(Path(cell.evidence.file).name)}:{cell.evidence.line}[/]")
    if cell.evidence.text:
        lines.append(f"[dim]{escape(first_words(cell.evidence.text))}[/]")
    if cell.buckets:
        more = f" and {len(cell.buckets) - 3} more" if len(cell.buckets) > 3 else ""
        lines.append(f"in {escape(', '.join(cell.buckets[:3]))}{more}")
    if cell.mend is not None and cell.root_cause:
        automatic = f" Automatic: {cell.mend.automatic}." if cell.mend.automatic else ""
        lines.append(f"mend: {escape(cell.mend.what)}{automatic} After it: {escape(first_words(cell.after_mend))}")
    return "\n".join(lines)


def first_words(text: str, *, characters: int = 240) -> str:
    """The text in one line, cut.

    >>> first_words("a  b", characters=80), first_words("abc def", characters=5)
    ('a b', 'abc ...')
    """
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 2].rstrip()} ..."
