"""allocation: state that is born inside a capture lives in the graph's pool and is overwritten by its replays.

The module is warm in another bucket, as where a host captures many: what it holds for all of them is there already."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Subject


def check_allocation(subject: Subject) -> Iterator[Finding]:
    """Warm with 8 rows, captured with 64: nothing that the capture allocated may be kept."""
    need_cuda(subject)
    for call in subject.calls(rows=[64]):
        module = subject.build(call)
        for warming in (subject.build(call), module):  # the first compiles, the second fills its own state
            rows = call if warming is not module else dataclasses.replace(call, rows=8 if call.rows else None)
            with torch.no_grad():
                warming(*subject.draw(rows))
        try:
            with Watch(writes=False) as watch:
                graphed = Graphed(module, subject.draw(call), warm_ups=0)
        except RuntimeError as error:
            raise Skip(f"not captured: {error}") from error
        graphed.outputs = None
        watch.seen.clear()
        gc.collect()
        kept = [s for s in watch.born if not s.expired()]
        if kept:
            text = f"{len(kept)} tensors that were allocated during the capture are still held after it"
            yield Finding(code="CG_ALLOC_IN_POOL", bucket=str(call), evidence=Evidence(text=text))
