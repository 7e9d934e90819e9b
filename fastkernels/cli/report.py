"""``fastkernels report``: the page, Markdown or JSON of one run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastkernels.cli.fail import fail
from fastkernels.errors import FastkernelsError


def report(
    results: Annotated[list[Path], typer.Argument(help="A run's folder or its result.json; several are side by side.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file to write; .html, .md or .json says in which form.")
    ] = Path("report.html"),
) -> None:
    """Writes what an evaluation found as one self-contained page, as Markdown or as JSON."""
    from fastkernels.evaluation.macroeval.load import load_run
    from fastkernels.evaluation.report.judged import judge
    from fastkernels.evaluation.report.render import write_report

    try:
        runs = [load_run(path) for path in results]
        write_report(runs, out)
    except FastkernelsError as error:
        fail("report", str(error))
    for judged in judge(runs):
        typer.echo(f"{judged.verdict.sentence}.")
    typer.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
