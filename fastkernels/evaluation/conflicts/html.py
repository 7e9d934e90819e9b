"""The matrix as one self-contained page: no script, no fetched file, readable on a phone and in the dark."""

from __future__ import annotations

from html import escape

from fastkernels.evaluation.conflicts.report import Cell, ConflictReport

STYLE = """
:root { color-scheme: light dark; --line: #8884; --pass: #1a7f37; --fail: #cf222e; --skip: #6e7781; }
@media (prefers-color-scheme: dark) { :root { --pass: #3fb950; --fail: #ff7b72; --skip: #8b949e; } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; margin: 0; }
li { border-top: 1px solid var(--line); padding: .5rem 0; display: grid;
     grid-template-columns: 9rem 3rem 1fr; gap: .6rem; }
.pass b { color: var(--pass); } .fail b { color: var(--fail); } .skip b { color: var(--skip); }
.said, .why { overflow-wrap: anywhere; } .why { color: var(--skip); }
code { font: .9em ui-monospace, monospace; }
.root { font-weight: 600; } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; }
@media (max-width: 40rem) { li { grid-template-columns: 1fr 3rem; } .said { grid-column: 1 / -1; } }
"""


def as_html(report: ConflictReport) -> str:
    """The whole page."""
    e = report.environment
    where = f"torch {e.torch}, Python {e.python}, Triton {e.triton or 'absent'}, {e.device}, {report.seconds:.0f} s"
    sections = "".join(_section(name, report.of(name)) for name in report.candidates())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Conflict matrix</title><style>{STYLE}</style></head><body><h1>Conflict matrix</h1>"
        f"<p>{escape(where)}. Skipped is not passed.</p>{sections}</body></html>\n"
    )


def _section(name: str, cells: list[Cell]) -> str:
    rows = "".join(_row(c) for c in cells)
    return f"<h2>{escape(name)} <small>{escape(cells[0].task)}</small></h2><ul>{rows}</ul>"


def _row(cell: Cell) -> str:
    return f'<li class="{cell.status}"><span>{escape(cell.stage)}</span><b>{cell.status}</b>{_said(cell)}</li>'


def _said(cell: Cell) -> str:
    if cell.code is None:
        return f'<span class="said why">{escape(cell.reason)}</span>'
    kinds = [cell.severity or "", *(w for w, true in (("silent", cell.silent), ("predicted", cell.predicted)) if true)]
    head = (
        f'<span class="{"root" if cell.root_cause else ""}"><code>{cell.code}</code> {escape(", ".join(kinds))}</span>'
    )
    parts = [head + (" (root cause)" if cell.root_cause else "")]
    if cell.caused_by:
        parts.append(f"follows from <code>{escape(cell.caused_by)}</code>")
    if cell.evidence.file:
        parts.append(f"<code>{escape(cell.evidence.file)}:{cell.evidence.line}</code>")
    if cell.buckets:
        parts.append(f"in {escape(', '.join(cell.buckets))}")
    if cell.mend is not None:
        parts.append(f"mend: {escape(cell.mend.what)} After it: {escape(cell.after_mend)}")
    text = f"<details><summary>evidence</summary><pre>{escape(cell.evidence.text)}</pre></details>"
    return f'<div class="said">{"<br>".join(parts)}{text if cell.evidence.text else ""}</div>'
