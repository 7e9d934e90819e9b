"""``fastkernels lock``: writes down what a folder of candidates holds, to be required where it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastkernels.cli.fail import fail
from fastkernels.errors import ServingError


def lock(
    folder: Annotated[str, typer.Argument(help="A candidate folder, or 'shipped'.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write it, if not to fastkernels.lock in the folder."),
    ] = None,
) -> None:
    """Writes the SHA-256 of each file below FOLDER. Serve with --lock FILE, and nothing else of it is loaded."""
    from fastkernels.serving.lock import lock as write

    try:
        typer.echo(write(folder, output))
    except (ServingError, OSError) as error:
        fail("lock", str(error))
