"""``fastkernels list``: the tasks there are, what each asks of a candidate, and which have a kernel shipped."""

from __future__ import annotations

import inspect
import json as jsonlib
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field
from rich.console import Console
from rich.markup import escape
from torch import nn

from fastkernels.cli.fail import fail
from fastkernels.cli.render import new_table
from fastkernels.errors import FastkernelsError
from fastkernels.runtime.candidate import Candidate, Supports
from fastkernels.runtime.load import load_candidates
from fastkernels.tasks import Task, all_tasks


class TaskListing(BaseModel):
    """One task as ``list`` shows it."""

    name: str
    level: int
    family: str
    interface: str = Field(description="constructor and forward of the module that a candidate takes the place of")
    stems: tuple[str, ...] = Field(description="file names, without .py, under which a candidate is found")
    parts: tuple[str, ...] = Field(description="lower tasks that the reference is built from")
    shipped: str | None = Field(description="file of the shipped candidate")
    limits: tuple[str, ...] = Field(description="what the shipped candidate declares it needs")


def list_tasks(
    level: Annotated[int | None, typer.Option(min=1, max=4, help="Only tasks of this level.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Lists the tasks: interface, file names for candidates, parts, and the shipped candidate with its limits."""
    try:
        shipped = load_candidates("shipped").by_task
    except FastkernelsError as error:
        fail("list", str(error))
    listed = [listing(t, shipped.get(t.name)) for t in all_tasks().values() if level in (None, t.level)]
    if json:
        typer.echo(jsonlib.dumps([entry.model_dump() for entry in listed], indent=2))
        return
    table = new_table("L", "task and family", "interface, file names, parts", "shipped")
    for t in listed:
        about = [escape(t.interface).replace(").forward(", ")\n.forward("), f"[dim]files {', '.join(t.stems)}[/]"]
        about += [f"[dim]parts {', '.join(t.parts)}[/]"] if t.parts else []
        kernel = f"[green]{t.shipped}[/]\n[dim]{escape('; '.join(t.limits) or 'no limits')}[/]" if t.shipped else "-"
        table.add_row(str(t.level), f"{t.name}\n[dim]{t.family}[/]", "\n".join(about), kernel)
    console = Console()
    console.print(table)
    console.print(f"{len(listed)} tasks, {sum(t.shipped is not None for t in listed)} with a shipped candidate.")


def listing(task: Task, candidate: Candidate | None) -> TaskListing:
    """What there is to say about a task in one row."""
    return TaskListing(
        name=task.name,
        level=task.level,
        family=task.family,
        interface=signature(task.interface),
        stems=(task.name, *task.stems),
        parts=task.parts,
        shipped=candidate.label if candidate is not None else None,
        limits=limits(candidate.supports) if candidate is not None else (),
    )


def signature(interface: type[nn.Module]) -> str:
    """Constructor and forward of an interface, without annotations.

    >>> from fastkernels.tasks.L1.rms_norm import RMSNorm
    >>> signature(RMSNorm)
    'RMSNorm(hidden_size, eps=1e-06, *, has_weight=True, late_cast=False).forward(x, residual=None)'
    """
    own = vars(interface).get("__init__")
    arguments = _parameters(own) if own is not None else ""
    return f"{interface.__name__}({arguments}).forward({_parameters(interface.forward)})"


def _parameters(function: Callable[..., Any]) -> str:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    bare = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
    return str(bare)[1:-1]


def limits(supports: Supports) -> tuple[str, ...]:
    """What a candidate declares that it needs, in words; empty where it takes anything.

    >>> limits(Supports(devices=("cuda",), capability=(8, 0)))
    ('cuda', 'compute capability 8.0 or later', 'inference only')
    """
    said = [] if supports.devices is None else [" or ".join(supports.devices)]
    if supports.dtypes is not None:
        said.append(" or ".join(str(d).removeprefix("torch.") for d in supports.dtypes))
    if supports.capability is not None:
        said.append("compute capability {}.{} or later".format(*supports.capability))
    if supports.facts is not None:
        said.append(f"facts: {_name(supports.facts)}")
    return (*said, "trains" if supports.training else "inference only")


def _name(rule: object) -> str:
    text = (inspect.getdoc(rule) or "").partition("\n")[0]
    return text or getattr(rule, "__name__", type(rule).__name__).strip("_")
