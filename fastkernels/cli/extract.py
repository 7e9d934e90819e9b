"""``fastkernels extract``: the parts of a model as task files that run on their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.errors import FastkernelsError

if TYPE_CHECKING:
    from fastkernels.authoring.extract import Extracted, Extraction


def extract(
    config: Annotated[str, typer.Argument(help="A packaged config's name, a config file or folder, a cached hub id.")],
    out: Annotated[Path | None, typer.Option(help="Folder for L1/*.py .. L3/*.py; extracted/NAME by default.")] = None,
    level: Annotated[list[int] | None, typer.Option(help="Only this level, 1 to 3; repeatable.")] = None,
    layers: Annotated[
        int | None, typer.Option(help="Layers to build; by default the fewest that show every kind.", min=1)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare each file with the live module.")] = False,
) -> None:
    """Writes the distinct operators, blocks and layers of a model. Exit status 1: --check found one unequal."""
    from fastkernels.authoring.extract import LEVELS
    from fastkernels.authoring.extract import extract as write

    try:
        extraction = write(config, out, levels=level or LEVELS, layers=layers, check=check)
    except FastkernelsError as error:
        fail("extract", str(error))
    except OSError as error:
        fail("extract", f"{error.filename} cannot be written: {error.strerror}. Give another folder.")
    show(Console(), extraction)
    if extraction.unequal:
        raise typer.Exit(1)


def show(console: Console, extraction: Extraction) -> None:
    """Prints a row for each file, what was left out, and a closing line."""
    table = new_table("file", "holds", "modules", "first", "check", right=("modules",))
    for file in extraction.files:
        holds = file.what if file.kind == "task" else f"{file.what} (imported)"
        name = "/".join(file.file.parts[-2:])
        table.add_row(name, holds, str(len(file.paths)), escape(file.paths[0]), about(file))
    console.print(table)
    for path, reason in extraction.left_out.items():
        console.print(f"[yellow]left out[/] {escape(path)}: {escape(reason)}")
    built = f"{extraction.layers} of {extraction.of_layers} layers built" if extraction.of_layers else "built whole"
    console.print(
        f"[dim]{len(extraction.files)} files of {extraction.cls} ({escape(extraction.model)}, {built}) in "
        f"{escape(str(extraction.files[0].file.parents[1]))}. Each runs on its own: python FILE[/]"
    )


def about(file: Extracted) -> str:
    """How the check of a file went: its distance from the live module, and what is allowed."""
    if file.checked is None:
        return "[dim]not asked for[/]"
    if file.checked.why:
        return f"[red]{escape(file.checked.why)}[/]"
    colour = "green" if file.checked.equal else "red"
    verdict = "equal" if file.checked.equal else "unequal"
    return f"[{colour}]{verdict}[/]: {file.checked.error} (limit {file.checked.limit.l2:.1e})"
