"""``fastkernels profile``: a candidate's own kernels, their times and counters, and its share of the roofline."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.errors import FastkernelsError

if TYPE_CHECKING:
    from fastkernels.evaluation.profile.result import KernelProfile, ProfileResult


class Tools(StrEnum):
    """The profilers."""

    ncu = "ncu"
    nsys = "nsys"
    torch = "torch"


def profile(
    target: Annotated[str, typer.Option(help="The task whose candidate to profile.")],
    candidates: Annotated[str, typer.Argument(help="A candidate folder, 'shipped' or 'reference'.")] = "shipped",
    tool: Annotated[Tools, typer.Option(help="torch runs in this process; ncu reads counters, nsys traces.")] = (
        Tools.torch
    ),
    case: Annotated[str | None, typer.Option(help="One of the task's cases.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu.")] = None,
    calls: Annotated[int | None, typer.Option(help="Calls of forward in the window.", min=1)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the tool may take.", min=1.0)] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="The whole result as JSON instead.")] = False,
) -> None:
    """Profiles one candidate on one case; clocks are left as they run."""
    from fastkernels.evaluation.profile.profile import profile as run

    try:
        result = run(
            target,
            candidates if candidates in ("shipped", "reference") else Path(candidates),
            tool=tool.value,
            case=case,
            dtype=dtype,
            device=device,
            calls=calls,
            timeout=timeout,
        )
    except FastkernelsError as error:
        fail("profile", str(error).removeprefix("profile: "))
    if json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        show(Console(), result)


def show(console: Console, result: ProfileResult) -> None:
    """Prints the kernels, slowest first, and a closing line."""
    where = f"{result.case} {result.dtype} on {result.device}"
    console.print(f"[bold]{escape(result.candidate)}[/] {result.task}: {escape(where)}, by {result.tool}")
    console.print(kernels_table(result.kernels))
    us = result.seconds * 1e6
    line = f"{us:.1f} us a call in {len(result.kernels)} kernels"
    if us:
        line += f", {result.bytes / us / 1e3:.3g} GB/s, {result.flops / us / 1e6:.3g} TFLOP/s"
    if result.roofline_share is not None:
        line += f", {result.roofline_share:.0%} of the roofline"
    if result.others:
        line += f"; {result.others} other kernels left out"
    console.print(line)
    for note in result.notes:
        console.print(f"[dim]{escape(note)}[/]")
    if result.command:
        console.print(f"[dim]{escape(shlex.join(result.command))}[/]", soft_wrap=True)


def kernels_table(kernels: list[KernelProfile]) -> Table:
    """A row a kernel, a column a metric that any of them has."""
    metrics = list(dict.fromkeys(name for k in kernels for name in k.metrics))
    numbers = ("launches", "us", *(heading(m) for m in metrics))
    table = new_table("kernel", *numbers, right=numbers)
    for k in kernels:
        shown = [cell(m, k.metrics[m]) if m in k.metrics else "" for m in metrics]
        table.add_row(escape(k.name), f"{k.launches:g}", f"{k.seconds * 1e6:.2f}", *shown)
    return table


def heading(metric: str) -> str:
    """A metric's name with the unit that ``cell`` gives it.

    >>> heading("dram_bytes"), heading("l2_hit_percent"), heading("median_seconds")
    ('dram MB', 'l2 hit %', 'median us')
    """
    words = {"bytes": "MB", "percent": "%", "seconds": "us"}
    return " ".join(words.get(word, word) for word in metric.split("_"))


def cell(metric: str, value: float) -> str:
    """A metric's value, in the unit of its heading.

    >>> cell("dram_bytes", 4.2e6), cell("median_seconds", 2e-6), cell("registers_per_thread", 32.0)
    ('4.20', '2.00', '32')
    """
    scale = {"bytes": 1e-6, "seconds": 1e6}.get(metric.rsplit("_", 1)[-1])
    return f"{value:.4g}" if scale is None else f"{value * scale:.2f}"
