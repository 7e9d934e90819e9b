"""``fastkernels create-stubs``: a candidate folder to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastkernels.cli.fail import fail
from fastkernels.errors import FastkernelsError


def create_stubs(
    out: Annotated[Path, typer.Argument(help="Folder for L1/*.py .. L4/*.py.")],
    level: Annotated[list[int] | None, typer.Option(help="Only tasks of this level, 1 to 4; repeatable.")] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Only tasks that this model has: a packaged config, a config file or folder, a cached hub id."
        ),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable. See `fastkernels list`.")] = None,
    captures: Annotated[
        Path | None, typer.Option(help="A capture, or a folder of them: their shapes go into the docstrings.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Writes candidate files that load, pass and gain nothing yet: each delegates to the reference."""
    from fastkernels.authoring.create_stubs import create_stubs as write

    try:
        stubs = write(out, levels=level, architecture=architecture, tasks=task, captures=captures, force=force)
    except FastkernelsError as error:
        fail("create-stubs", str(error))
    except OSError as error:
        fail("create-stubs", f"{error.filename} cannot be written: {error.strerror}. Give another folder.")
    for file in stubs.written:
        typer.echo(f"wrote {file}")
    for file in stubs.kept:
        typer.echo(f"kept  {file}: it is there already; --force writes over it")
    replay = f" --captures {captures}" if captures is not None else ""
    typer.echo(f"{len(stubs.written)} written, {len(stubs.kept)} kept. Next: fastkernels bench {out}{replay}")
