"""Where and why graphs ended early, and which functions run eagerly, in the words of torch's own records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastkernels.runtime.compile_report import BreakReport


def counted(breaks: Iterable[BreakReport]) -> list[BreakReport]:
    """Breaks of one line for one reason as one; each graph that ends there tells of it."""
    times = Counter((b.where, b.reason, b.mend, b.eager) for b in breaks)
    return [BreakReport(where=w, reason=r, mend=m, eager=e, times=n) for (w, r, m, e), n in times.items()]


def breaks_in(reasons: Sequence[Any], candidates: set[str]) -> Iterator[BreakReport]:
    torch_folder = str(Path(torch.__file__).parent)
    for found in reasons:
        frames = list(found.user_stack)
        theirs = [f for f in frames if f.filename in candidates]
        frame = (theirs or [f for f in frames if not f.filename.startswith(torch_folder)] or frames or [None])[-1]
        where = "unknown" if frame is None else f"{frame.filename}:{frame.lineno} in {frame.name}"
        yield _told(found.reason, where, in_candidate=bool(theirs))


def given_up(metrics: Sequence[Any], candidates: set[str]) -> Iterator[BreakReport]:
    """Functions that Dynamo failed on, the limit of recompilations among the causes."""
    named = {_frame(m): m for m in reversed(metrics) if m.co_filename}
    for m in metrics:
        if m.fail_type is not None:
            known = named.get(_frame(m), m)  # past the limit of recompilations torch names no code
            file = m.fail_user_frame_filename or known.co_filename
            where = f"{file}:{m.fail_user_frame_lineno or known.co_firstlineno}"
            text = m.fail_reason or m.fail_type
            yield _told(text, where, in_candidate=file in candidates, eager=known.co_name or "a function")


def _frame(metrics: Any) -> str:
    return (metrics.compile_id or "").partition("/")[0]


def _told(text: str, where: str, *, in_candidate: bool, eager: str = "") -> BreakReport:
    """The parts of torch's text on a break: what, why, and a hint."""
    lines = [line.strip().removeprefix("Unsupported: ") for line in text.splitlines() if line.strip()]
    why = [line for line in lines if line.startswith("Explanation:")]
    hints = [line.removeprefix("Hint:").strip() for line in lines if line.startswith("Hint:")]
    mend = (hints or ["Rewrite this line with tensor operations only, or move it out of forward."])[0]
    if in_candidate:
        mend = "Patch with lowering='opaque' or 'auto': the candidate becomes one operator."
    return BreakReport(where=where, reason=" ".join([*lines[:1], *why[:1]]), mend=mend, eager=eager)
