"""``fastkernels serve``: a serving engine's own server, with candidates in the model of each worker."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastkernels.cli.fail import fail
from fastkernels.errors import ServingError


class Engine(StrEnum):
    """Engines by the name of their Python package."""

    vllm = "vllm"
    sglang = "sglang"


class OnError(StrEnum):
    """What is to happen where candidates cannot be put in."""

    stop = "stop"
    serve = "serve"


def serve(
    model: Annotated[str, typer.Argument(help="As the engine takes it: a folder, or a model id on the hub.")],
    candidates: Annotated[
        str, typer.Option(envvar="FASTKERNELS_CANDIDATES", help="A candidate folder, 'shipped' or 'reference'.")
    ],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- ENGINE_ARGS]", help="The engine's own.")] = None,
    engine: Annotated[Engine, typer.Option(help="Must be installed beside fastkernels.")] = Engine.vllm,
    select: Annotated[
        list[str] | None, typer.Option(help="Only sites whose PATH or PATH:TASK matches the glob; repeatable.")
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option(
            envvar="FASTKERNELS_ON_ERROR",
            help="stop: the server does not start; serve: it starts unpatched, and says so.",
        ),
    ] = OnError.stop,
    lock: Annotated[Path | None, typer.Option(help="A file of 'fastkernels lock': nothing else is loaded.")] = None,
    report_dir: Annotated[Path | None, typer.Option(help="Where each worker writes its report.")] = None,
) -> None:
    """Checks the candidates, then becomes the engine's server. Its workers tell what stands at GET /fastkernels/report.

    Other FASTKERNELS_ variables hold too. Example: fastkernels serve --candidates shipped MODEL -- -tp 2
    """
    from fastkernels.serving.launch import command_of, environment_of  # these imports take seconds

    try:
        environment = environment_of(
            engine.value,
            candidates=candidates,
            select=tuple(select or ()),
            on_error=on_error.value,
            lock=lock,
            report_dir=report_dir,
        )
    except ServingError as error:
        fail("serve", str(error))
    command = command_of(engine.value, model, arguments or [])
    os.execvpe(command[0], command, os.environ | environment)
