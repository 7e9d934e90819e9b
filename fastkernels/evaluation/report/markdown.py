"""A document as GitHub-flavoured Markdown; charts are left out, their numbers are in the tables."""

from __future__ import annotations

import html
import re

from fastkernels.evaluation.report.document import Block, Cell, Charts, Code, Details, Document, Section, Table, Text

SPECIAL = re.compile(r"([\\`*_\[\]|~#@])")


def markdown(document: Document) -> str:
    """The whole report. Text is escaped: it can be neither markup nor a link nor a mention."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    parts += [_quoted(v) for v in document.verdicts]
    parts += [_section(s, 2) for s in document.sections]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text in one line, without markup.

    >>> print(escape("a|b <i>_c_</i>"))
    a\\|b &lt;i&gt;\\_c\\_&lt;/i&gt;
    """
    return SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _quoted(verdict: Cell) -> str:
    note = f"  \n> {escape(verdict.note)}" if verdict.note else ""
    return f"> **{escape(verdict.text)}**{note}"


def _section(section: Section, level: int) -> str:
    parts = [f"{'#' * level} {escape(section.title)}"]
    parts += [text for b in section.blocks if (text := _block(b))]
    parts += [_section(s, level + 1) for s in section.sections]
    return "\n\n".join(parts)


def _block(block: Block) -> str:
    match block:
        case Text():
            return escape(block.text)
        case Table():
            return _table(block)
        case Code():
            return _fenced(block.text)
        case Charts():
            return ""
        case Details():
            inner = "\n\n".join(text for b in block.blocks if (text := _block(b)))
            return f"<details><summary>{html.escape(block.summary)}</summary>\n\n{inner}\n\n</details>"


def _table(table: Table) -> str:
    heads = " | ".join(escape(c.heading) for c in table.columns)
    rules = " | ".join("---:" if c.kind == "number" else "---" for c in table.columns)
    rows = [" | ".join(_cell(c) for c in cells) for cells in table.rows]
    lines = "\n".join(f"| {line} |" for line in (heads, rules, *rows))
    return f"*{escape(table.caption)}*\n\n{lines}"


def _cell(cell: Cell) -> str:
    lines = [escape(line) for line in [*cell.text.split("\n"), *([cell.note] if cell.note else [])]]
    return "<br>".join(lines)


def _fenced(text: str) -> str:
    """A fence longer than any in the text, which may be a log of anything."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
