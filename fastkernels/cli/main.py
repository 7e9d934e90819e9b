"""The ``fastkernels`` command: one file a subcommand, each a thin skin over a public function."""

from __future__ import annotations

import typer

from fastkernels.cli.bench import bench
from fastkernels.cli.capture import capture
from fastkernels.cli.conflicts import conflicts
from fastkernels.cli.coverage import coverage
from fastkernels.cli.create_stubs import create_stubs
from fastkernels.cli.eval import evaluate
from fastkernels.cli.explain import explain
from fastkernels.cli.extract import extract
from fastkernels.cli.history import history
from fastkernels.cli.list import list_tasks
from fastkernels.cli.lock import lock
from fastkernels.cli.plan import plan
from fastkernels.cli.profile import profile
from fastkernels.cli.report import report
from fastkernels.cli.score import score
from fastkernels.cli.serve import serve

app = typer.Typer(
    name="fastkernels",
    help="Puts candidate GPU kernels into live models and proves what they gained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan)
app.command("list")(list_tasks)
app.command("create-stubs")(create_stubs)
app.command("extract")(extract)
app.command("bench")(bench)
app.command("profile")(profile)
app.command("conflicts")(conflicts)
app.command("explain")(explain)
app.command("eval")(evaluate)
app.command("report")(report)
app.command("score")(score)
app.command("history")(history)
app.command("coverage")(coverage)
app.command("capture")(capture)
app.command("lock")(lock)
app.command("serve")(serve)

if __name__ == "__main__":
    app()
