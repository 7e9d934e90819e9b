"""What compiled graphs hold of candidates, as the backends that compile them say: for proofs that they ran."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

from torch._guards import CompileContext


@dataclass(frozen=True, kw_only=True)
class Note:
    """``names`` of operators and kernels in a graph, with nodes; ``region`` as profilers show it when it runs."""

    region: str | None
    names: Mapping[str, int]


_notes: dict[int, Note] = {}
_keys = itertools.count()


def note_graph(names: Mapping[str, int], *, owner: object | None = None) -> None:
    """Says what a graph that is being compiled holds.

    To be called while Dynamo calls the backend: so the graph is known by the id that profilers show when it runs.

    Args:
        names: operators (``fastkernels::rms_norm_<hash>``) and Triton kernels (name of the function), with nodes.
        owner: what is called in place of the graph; the note goes with it. Without one it stays with the process.
    """
    compiling = CompileContext.current_compile_id()
    key = next(_keys)
    _notes[key] = Note(region=None if compiling is None else str(compiling), names=dict(names))
    if owner is not None:
        weakref.finalize(owner, _notes.pop, key, None).atexit = False


def graph_notes() -> list[Note]:
    """The notes on graphs that are still alive."""
    return list(_notes.values())
