"""``fastkernels eval``: a scenario, patched against unpatched, with a progress bar and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from fastkernels.cli.fail import fail

if TYPE_CHECKING:
    from fastkernels.evaluation.e2e.contest import Progress


def evaluate(
    scenario: Annotated[str, typer.Argument(help="minimal, default, full, or a YAML file.")],
    candidates: Annotated[
        str, typer.Option(help="A candidate folder, 'shipped', 'reference' or 'identity'.")
    ] = "shipped",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; one that a killed run left is continued.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; without, a GPU where there is one.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of an arm on a CPU; without, half the cores.", min=1)
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Glob over the scenario's models; repeatable.")] = None,
    select: Annotated[list[str] | None, typer.Option(help="Glob over PATH or PATH:TASK; repeatable.")] = None,
    lowering: Annotated[
        str, typer.Option(help="How graphs hold candidates: inline, opaque, transparent or auto.")
    ] = "auto",
    verify: Annotated[bool, typer.Option(help="Try each candidate at each site before it is put in.")] = True,
    gpus: Annotated[int | None, typer.Option(help="Entries side by side on so many devices.", min=1)] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster for the entries: auto, local, host:port.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(help="MLflow tracking URI to log the run to.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The result as JSON instead of the verdict.")] = False,
) -> None:
    """Runs the arms of every model in turn, judges outputs, and writes result.json and report.html."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from fastkernels.cli.score import show
    from fastkernels.errors import EvaluationError, FastkernelsError
    from fastkernels.evaluation.e2e.evaluate import RESULT, new_folder
    from fastkernels.evaluation.e2e.evaluate import evaluate as run_scenario
    from fastkernels.evaluation.macroeval.leaderboard import leaderboard
    from fastkernels.evaluation.report.render import write_report
    from fastkernels.evaluation.report.verdict import verdict
    from fastkernels.runtime.candidate import Lowering

    if lowering not in get_args(Lowering):
        fail("eval", f"--lowering {lowering}: inline, opaque, transparent or auto.")
    err = Console(stderr=True)
    folder = out or new_folder(Path(scenario).stem, Path(candidates).name)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Bar(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
            rows: dict[str, int] = {}

            def follow(name: str, progress: Progress) -> None:
                if name not in rows:
                    rows[name] = bar.add_task(name, total=None)
                total = progress.total if progress.total > 1 else None
                bar.update(rows[name], description=f"{name}: {progress.phase}", completed=progress.done, total=total)  # type: ignore[arg-type] # a TaskID is an int

            result = run_scenario(
                scenario,
                candidates,
                out=folder,
                device=device,
                threads=threads,
                only=only or (),
                select=select or (),
                lowering=lowering,  # type: ignore[arg-type] # checked above
                verify=verify,
                gpus=gpus,
                ray_address=ray_address,
                on_progress=follow,
            )
        report = folder / "report.html"
        try:
            write_report([result], report)
        except EvaluationError as error:  # the packages of the page are missing; the result is there all the same
            report = None
            err.print(f"no report.html: {error}", highlight=False)
        if mlflow is not None:
            from fastkernels.evaluation.lineage.mlflow_store import log_run

            log_run(result, folder, uri=mlflow)
    except FastkernelsError as error:
        fail("eval", str(error))
    if json:
        typer.echo(result.model_dump_json(indent=2))
        raise typer.Exit(0 if any(m.passed for m in result.models) else 1)
    console, board = Console(), leaderboard([result])
    show(console, board)
    told = verdict(result, board.standings[0].score.S_passed)
    console.print(f"[bold]{escape(told.sentence)}[/]", highlight=False)
    console.print(f"{folder / RESULT}{f' and {report.name}' if report else ''}", highlight=False, soft_wrap=True)
    if told.state == "failed":
        raise typer.Exit(1)
