"""``fastkernels coverage``: how much of a model's modules and time candidates stand for, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastkernels.cli.explain import NoInputs, inputs_for, with_weights
from fastkernels.cli.fail import fail
from fastkernels.cli.plan import ModelNotFound

if TYPE_CHECKING:
    from rich.console import Console

    from fastkernels.evaluation.coverage.result import Coverage


def coverage(
    model: Annotated[Path, typer.Argument(help="A folder with a config.json; without weights they are random.")],
    candidates: Annotated[str, typer.Option(help="A candidate folder, 'shipped' or 'reference'.")] = "shipped",
    select: Annotated[list[str] | None, typer.Option(help="Glob over PATH or PATH:TASK; repeatable.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 1,
    tokens: Annotated[int, typer.Option(help="Tokens of one sequence.", min=1)] = 128,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="The whole result as JSON instead.")] = False,
) -> None:
    """Times one forward call of the unpatched model in eager, by the modules that candidates would replace."""
    import torch
    from rich.console import Console

    from fastkernels.errors import FastkernelsError
    from fastkernels.evaluation.coverage.coverage import coverage as measure

    try:
        built = with_weights(model).to(device)
        inputs = inputs_for(built, batch, tokens, device)
        with torch.no_grad():
            found = measure(built, candidates, lambda: built(**inputs), select=select or "all")
    except (ModelNotFound, NoInputs, FastkernelsError) as error:
        fail("coverage", str(error))
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    show(Console(), found)


def show(console: Console, found: Coverage) -> None:
    """The share, a row for every task, and where the rest of the time passes."""
    from rich import box
    from rich.table import Table

    clock = "device time" if found.clock == "device" else "CPU time"
    share = "" if found.share is None else f", {found.share:.1%} of the {clock}"
    console.print(f"candidates hold {found.applied} of {found.sites} sites{share}")
    tasks = Table("task", box=box.SIMPLE_HEAD)
    for name in ("sites", "applied", clock):
        tasks.add_column(name, justify="right")
    for t in found.tasks:
        tasks.add_row(t.task, str(t.sites), str(t.applied), "" if t.share is None else f"{t.share:.1%}")
    console.print(tasks)
    rest = Table("left as it is", box=box.SIMPLE_HEAD)
    rest.add_column(clock, justify="right")
    for name, value in found.outside.items():
        rest.add_row(name, f"{value:.1%}")
    console.print(rest)
