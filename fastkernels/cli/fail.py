"""How a command ends on a user's mistake: one line on stderr, exit status 2."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(command: str, message: str) -> NoReturn:
    """Prints ``fastkernels COMMAND: MESSAGE`` on stderr, in one line, and exits with status 2."""
    typer.echo(f"fastkernels {command}: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)
