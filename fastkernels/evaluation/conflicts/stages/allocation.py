"""allocation: state that is born inside a capture lives in the graph's pool and is overwritten by its replays.

The module is warm in a larger bucket, as where a host captures many from the largest down: what it holds for all of
them is there already."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator

from fastkernels.evaluation.conflicts.compare import warm
from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Subject


def check_allocation(subject: Subject) -> Iterator[Finding]:
    """Warm with 64 rows, captured with 48, as compilers treat both alike and what grows is large enough: nothing that
    the capture allocated may be kept."""
    need_cuda(subject)
    for call in subject.calls(rows=[48]):
        module, watch = subject.build(call), Watch(writes=False)
        warm(module, subject.draw(dataclasses.replace(call, rows=64 if call.rows else None)))
        try:
            graphed = Graphed(module, subject.draw(call), warm_ups=0, watching=watch)
        except RuntimeError as error:
            raise Skip(f"not captured: {error}") from error
        graphed.outputs = None
        watch.seen.clear()
        gc.collect()
        kept = [s for s in watch.born if not s.expired()]
        if kept:
            text = f"{len(kept)} tensors that were allocated during the capture are still held after it"
            yield Finding(code="CG_ALLOC_IN_POOL", bucket=str(call), evidence=Evidence(text=text))
