"""``fastkernels bench``: one operator at a time, judged and timed against the best that production has."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.errors import CandidateError, FastkernelsError

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.result import BenchResult

SHOWN_FAILURES = 3  # of one case; the JSON has all
LOG_WIDTH = 160  # columns where the output is no terminal: a row is a line


def bench(
    candidates: Annotated[str, typer.Argument(help="A candidate folder or file, or shipped.")] = "shipped",
    target: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    level: Annotated[list[int] | None, typer.Option(help="Only tasks of this level; repeatable.", min=1, max=4)] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only cases of this name; repeatable.")] = None,
    captures: Annotated[Path | None, typer.Option(help="A folder or file of captured calls, replayed.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="The best baseline against itself: 1.")] = False,
    production: Annotated[bool, typer.Option("--production", help="The large shapes of serving instead.")] = False,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16 or float16; repeatable.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="eager, compiled or graph; repeatable.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing.", min=2)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that a candidate may take to answer.", min=1.0)] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="The public benchmark's JSON instead of the rows.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write everything that was found, as JSON.")] = None,
) -> None:
    """Benches candidates, each in a process that knows neither seeds nor clock. Exit status 1: a gate fails."""
    from fastkernels.evaluation.bench.bench import bench as run
    from fastkernels.evaluation.capture.store import load_captures

    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        fail("bench", f"{out} cannot be written. Give a file in a folder that is there.")
    err = Console(stderr=True)

    def on_case(so_far: BenchResult) -> None:
        if out is not None:
            _save(so_far, out)
        last = so_far.cases[-1]
        said = f"{last.task} {last.case} {last.dtype}: {last.status}, {sum(last.seconds.values()):.0f} s"
        err.print(f"{len(so_far.cases)} {said}", highlight=False, markup=False)

    try:
        result = run(
            given(candidates),
            targets=target,
            levels=level,
            captures=load_captures(captures) if captures is not None else None,
            self_test=self_test,
            device=device,
            dtypes=dtype,
            modes=mode,  # type: ignore[arg-type] # others are refused by name
            rounds=rounds,
            production=production,
            cases=case,
            timeout=timeout,
            on_case=on_case,
        )
    except FastkernelsError as error:
        fail("bench", str(error))
    if out is not None:
        _save(result, out)
    if json:
        typer.echo(jsonlib.dumps(result.public(), indent=2))
    else:
        show(Console(width=None if sys.stdout.isatty() else LOG_WIDTH), result)
    if result.failed:
        raise typer.Exit(1)


def _save(result: BenchResult, out: Path) -> None:
    from fastkernels.evaluation.whole_file import whole_file

    try:
        with whole_file(out) as path:
            path.write_text(result.model_dump_json(indent=2), encoding="utf-8")
    except OSError as error:
        fail("bench", f"{out} cannot be written: {error.strerror}. Give another file.")


def given(candidates: str) -> str | dict[str, Path]:
    """What to bench: a folder or a name as it is; a file by the task that its name, and its folder's, tell.

    Raises:
        CandidateError: no task has the file's name.
    """
    from fastkernels.tasks import task_for_stem
    from fastkernels.tasks.registry import LEVELS

    file = Path(candidates).expanduser()
    if not file.is_file():
        return candidates
    levels = [n for n in LEVELS if file.parent.name == f"L{n}"] or LEVELS
    for n in levels:
        if (task := task_for_stem(n, file.stem)) is not None:
            return {task.name: file}
    raise CandidateError(f"candidates: {file}: no task is called {file.stem}. Name the file L1/rms_norm.py, say.")


def show(console: Console, result: BenchResult) -> None:
    """Prints the rows, what every baseline took, why cases failed, and a closing line."""
    from fastkernels.evaluation.bench.rows import HEADINGS, baselines, closing, notes, row, why

    table = new_table(*HEADINGS, right=("us", "rate", "roofline"))
    timed = new_table("case", "us by baseline and mode")
    for case in result.cases:
        found = row(case)
        colour = "green" if found.passed else "red" if case.failed else "bright_black"
        table.add_row(*map(escape, found.cells[:-1]), f"[{colour}]{escape(found.gate)}[/]")
        if case.timing:
            told = (f"{name} {us}" if mode == "eager" else f"{name} {mode} {us}" for name, mode, us in baselines(case))
            timed.add_row(escape(found.case), escape(", ".join(told)))
    console.print(table)
    if timed.row_count:
        console.print()
        console.print(timed)
    for case in result.cases:
        if case.failed:
            console.print(f"\n[bold red]{escape(row(case).case)}[/] {escape(case.candidate)}")
            for line in why(case, at_most=SHOWN_FAILURES):
                console.print(f"  {escape(line)}", soft_wrap=True)
    if told := notes(result):
        console.print()
    for note in told:
        console.print(f"[dim]note: {escape(note)}[/]", soft_wrap=True)
    console.print(f"\n[dim]{escape(closing(result))}[/]")
