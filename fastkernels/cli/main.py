"""The ``fastkernels`` command: one file a subcommand, each a thin skin over a public function."""

from __future__ import annotations

import typer

from fastkernels.cli.conflicts import conflicts
from fastkernels.cli.explain import explain
from fastkernels.cli.list import list_tasks
from fastkernels.cli.plan import plan

app = typer.Typer(
    name="fastkernels",
    help="Puts candidate GPU kernels into live models and proves what they gained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan)
app.command("list")(list_tasks)
app.command("conflicts")(conflicts)
app.command("explain")(explain)

if __name__ == "__main__":
    app()
