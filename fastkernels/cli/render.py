"""A report as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastkernels.cli.summary import STATES, site_rows, unrecognised_rows
from fastkernels.patches.report import CandidateReport, Report

COLOURS = dict(zip(STATES, ("green", "yellow", "red", "cyan", "bright_black"), strict=True))


def show_report(console: Console, report: Report, *, every_site: bool = False) -> None:
    """Prints the sites, the candidates and what was not recognised; ``every_site`` gives each site its own row."""
    console.print(headline(report))
    console.print(every_site_table(report) if every_site else sites_table(report))
    console.print()
    console.print(candidates_table(report.candidates))
    if report.unrecognised:
        console.print()
        console.print(unrecognised_table(report))


def headline(report: Report) -> str:
    """One line: the model, its sites by state, and how long it took."""
    counts = report.count()
    states = ", ".join(f"{counts[s]} [{COLOURS[s]}]{s}[/]" for s in STATES if counts[s]) or "none"
    verb = "plan" if report.dry_run else "patch"
    return f"[bold]{escape(report.model)}[/] {verb}: {len(report.sites)} sites: {states} ({report.seconds:.1f} s)"


def sites_table(report: Report) -> Table:
    """Sites that ended alike in one row; between layers only what differs."""
    table = sites_columns("sites")
    for row in site_rows(report):
        where = "\n".join(map(escape, row.where))
        ended = state(row.state, row.candidate, row.reason)
        table.add_row(str(row.count), f"{where}\n[dim]{escape(row.cls)}[/]", row.task, ended)
    return table


def every_site_table(report: Report) -> Table:
    """One row a site, in the model's own order."""
    table = sites_columns("#")
    for i, s in enumerate(report.sites, 1):
        path = f"{escape(s.path or '(model)')}\n[dim]{escape(s.cls)}[/]"
        table.add_row(str(i), path, s.task, state(s.state, s.candidate or "", s.reason))
    return table


def candidates_table(candidates: list[CandidateReport]) -> Table:
    """Where each candidate ended; those that ended alike without a site share a row."""
    table = new_table("sites", "candidates", "state and why")
    rows: dict[tuple[str, str, int], list[str]] = {}
    for c in sorted(candidates, key=lambda c: STATES.index(c.state)):
        rows.setdefault((c.state, c.reason, c.sites), []).append(c.label)
    for (name, reason, sites), labels in rows.items():
        table.add_row(str(sites), escape(", ".join(labels)), state(name, "", reason))
    return table


def unrecognised_table(report: Report) -> Table:
    """Modules that only looked like a task."""
    table = new_table("modules", "unrecognised and class", "looked like", "why not", right=("modules",))
    for count, where, cls, task, reason in unrecognised_rows(report.unrecognised):
        paths = "\n".join(map(escape, where))
        table.add_row(str(count), f"{paths}\n[dim]{escape(cls)}[/]", task, escape(reason))
    return table


def state(name: str, candidate: str, reason: str) -> str:
    """A terminal state in its colour, the candidate, then the reason."""
    first = f"[{COLOURS[name]}]{name}[/] {escape(candidate)}".rstrip()
    return f"{first}: [dim]{escape(reason)}[/]" if reason else first


def new_table(*headings: str, right: tuple[str, ...] = ("sites",)) -> Table:
    """The one look of our tables: headings in ``right`` are numbers, words that are too long fold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def sites_columns(first: str) -> Table:
    """A table over the full width whose paths get more of it than the reasons: a folded path is hard to read."""
    table = new_table(first, "where and class", "task", "state, candidate and why", right=(first,))
    table.expand = True
    table.columns[1].ratio, table.columns[3].ratio = 4, 3
    return table
