"""What a report is made of: sections of text, tables and charts, in no format yet, so that every form says the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["", "good", "bad", "warn", "muted"]
Figure = dict[str, Any]  # a plotly figure: {"data": [...], "layout": {...}}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell. The tone only colours what the text says already; the note stands below the text."""

    text: str
    tone: Tone = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """``number`` is set to the right, ``code`` in a fixed width; the first column of a table heads its rows."""

    heading: str
    kind: Literal["text", "number", "code"] = "text"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The caption says what the table shows, and what it was measured on."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Commands to copy, or the end of a log."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Drawn only on the page; its numbers are in a table of the same section."""

    title: str
    figure: Callable[[], Figure] = field(repr=False)
    height: int = 240  # pixels


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Charts side by side, as many as fit."""

    charts: Sequence[Chart]
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is folded until it is asked for."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, what stands below it, and sections inside; all below the heading may be folded."""

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = ()
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report; ``verdicts`` is one sentence a run."""

    title: str
    subtitle: str
    verdicts: Sequence[Cell]
    sections: Sequence[Section]


Block = Text | Table | Code | Charts | Details


def columns(*headings: str | Column) -> list[Column]:
    """Columns by heading; one that ends in # holds numbers, in $ code. A Column stays: its name is from outside."""
    kinds: dict[str, Literal["number", "code"]] = {"#": "number", "$": "code"}
    return [
        h
        if isinstance(h, Column)
        else Column(heading=h[:-1], kind=kinds[h[-1]])
        if h[-1] in kinds
        else Column(heading=h)
        for h in headings
    ]


def row(*cells: str | Cell) -> list[Cell]:
    """A row of cells; a plain string is a cell without a tone."""
    return [Cell(text=c) if isinstance(c, str) else c for c in cells]
