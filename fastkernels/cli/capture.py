"""``fastkernels capture``: what a scenario's models call, with which shapes, how often, and with which values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastkernels.cli.fail import fail


def capture(
    scenario: Annotated[str, typer.Argument(help="minimal, default, full, or a YAML file, as for eval.")],
    values: Annotated[
        str, typer.Option(help="none; integers (routing, positions); sampled (a few calls of each kind); all.")
    ] = "none",
    out: Annotated[Path | None, typer.Option(help="Folder of the captures.")] = None,
    max_bytes: Annotated[int, typer.Option(help="Most bytes of values of one capture.", min=0)] = 1 << 28,
    per_kind: Annotated[int, typer.Option(help="Calls of one kind whose values are kept.", min=1)] = 4,
    prompts: Annotated[bool, typer.Option("--prompts", help="Also store token ids, and what shows them.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Glob over the scenario's models; repeatable.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; without, a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on a CPU; without, half the cores.", min=1)] = None,
    graphs: Annotated[bool, typer.Option(help="Also compare with the shapes that compiled passes see.")] = True,
    public: Annotated[
        Path | None, typer.Option(help="Also write the public benchmark's capture JSON, into this folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The captures as JSON instead of their reports.")] = False,
) -> None:
    """Serves every workload of every model once, unpatched, and writes down the calls of each site."""
    from rich.console import Console
    from rich.markdown import Markdown

    from fastkernels.errors import FastkernelsError
    from fastkernels.evaluation.capture.capture import MODES
    from fastkernels.evaluation.capture.report import as_markdown
    from fastkernels.evaluation.capture.scenario import capture_scenario

    if values not in MODES:
        fail("capture", f"--values {values}: one of {', '.join(MODES)}.")
    err = Console(stderr=True)
    try:
        captures = capture_scenario(
            scenario,
            values=values,  # type: ignore[arg-type] # checked above
            out=out,
            prompts=prompts,
            max_bytes=max_bytes,
            per_kind=per_kind,
            device=device,
            threads=threads,
            only=only or (),
            graphs=graphs,
            public=public,
            on_progress=lambda model: err.print(f"capturing {model}", highlight=False),
        )
    except FastkernelsError as error:
        fail("capture", str(error))
    if json:
        typer.echo(f"[{','.join(c.model_dump_json() for c in captures)}]")
        return
    console = Console()
    for found in captures:
        if console.is_terminal:
            console.print(Markdown(as_markdown(found)))
        else:
            typer.echo(as_markdown(found))
        console.print(str(found.folder), highlight=False, soft_wrap=True)
