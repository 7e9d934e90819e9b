"""Folds a report's sites that ended alike into one row, with their paths as patterns: 32 layers are one line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastkernels.patches.report import Report, SiteReport, UnrecognisedReport

STATES = ("applied", "gated", "refused", "shadowed", "unmatched")
INDEX_IN_PATH = re.compile(r"(?<=[A-Za-z_])\.\d+\b(?!\.\d)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Sites of one class, task and terminal state, for one reason."""

    count: int
    where: tuple[str, ...]
    cls: str
    task: str
    level: int
    state: str
    candidate: str
    reason: str
    calls: int


def site_rows(report: Report) -> list[Row]:
    """The report's sites, alike ones together: by state, higher levels first."""
    groups: dict[tuple[str, ...], list[SiteReport]] = defaultdict(list)
    for s in report.sites:
        groups[s.cls, s.task, s.state, s.candidate or "", fold_indices(s.reason)].append(s)
    everywhere = [s.path for s in report.sites]
    rows = [
        Row(
            count=len(group),
            where=patterns([s.path for s in group], everywhere),
            cls=cls,
            task=task,
            level=group[0].level,
            state=state,
            candidate=candidate,
            reason=reason,
            calls=sum(s.calls for s in group),
        )
        for (cls, task, state, candidate, reason), group in groups.items()
    ]
    return sorted(rows, key=lambda r: (STATES.index(r.state), -r.level, r.task))


def unrecognised_rows(missed: Sequence[UnrecognisedReport]) -> list[tuple[int, tuple[str, ...], str, str, str]]:
    """``(count, where, class, task, reason)`` of the modules that only looked like a task."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for u in missed:
        groups[u.cls, u.task, fold_indices(u.reason)].append(u.path)
    everywhere = [u.path for u in missed]
    return [(len(paths), patterns(paths, everywhere), *key) for key, paths in groups.items()]


def fold_indices(text: str) -> str:
    """``text`` with the layer numbers of module paths as ``*``; other numbers stay.

    >>> fold_indices("computed by gated_mlp at model.layers.31.mlp, error 0.25")
    'computed by gated_mlp at model.layers.*.mlp, error 0.25'
    """
    return INDEX_IN_PATH.sub(".*", text)


def patterns(paths: Sequence[str], everywhere: Iterable[str]) -> tuple[str, ...]:
    """Glob-like patterns for ``paths``, one a parent; ``*`` where every index in ``everywhere`` is among them.

    >>> every = [f"layers.{i}.{name}" for i in range(4) for name in ("q", "k")]
    >>> patterns(every, every)
    ('layers.*.{q, k}',)
    >>> patterns(["layers.0.q", "layers.1.q", "layers.3.q"], every)
    ('layers.[0-1,3].q',)
    """
    have, all_of = _by_shape(paths), _by_shape(everywhere)
    leaves: dict[str, list[str]] = defaultdict(list)
    for shape, indices in have.items():
        if indices < all_of[shape] and shape.count("*") == 1:
            shape = shape.replace("*", f"[{_ranges(sorted(i[0] for i in indices))}]")
        parent, dot, leaf = shape.rpartition(".")
        leaves[parent + dot].append(leaf)
    return tuple(f"{parent}{{{', '.join(own)}}}" if len(own) > 1 else parent + own[0] for parent, own in leaves.items())


def _by_shape(paths: Iterable[str]) -> dict[str, set[tuple[int, ...]]]:
    """Paths with ``*`` for numbers, each with the numbers that stood there."""
    shapes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for path in paths:
        parts = path.split(".")
        shape = ".".join("*" if p.isdigit() else p for p in parts) or "(model)"
        shapes[shape].add(tuple(int(p) for p in parts if p.isdigit()))
    return shapes


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)
