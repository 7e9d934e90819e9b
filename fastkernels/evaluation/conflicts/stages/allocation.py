"""allocation: state that is born inside a capture lives in the graph's pool and is overwritten by its replays.

The module is warm in a larger bucket, as where a host captures many from the largest down: what it holds for all of
them is there already."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.compare import warm
from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.interpreted import interpreted
from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Subject, tensors


def check_allocation(subject: Subject) -> Iterator[Finding]:
    """Warm with 64 rows, captured with 48, as compilers treat both alike and what grows is large enough: nothing that
    the capture allocated may be kept. Without a device the second call is no capture, and what it keeps is counted."""
    found, cuda = False, subject.device.type == "cuda"
    if not cuda and interpreted(subject.candidate.cls):
        raise Skip("Triton runs interpreted (TRITON_INTERPRET=1), which keeps the tensors of a launch itself")
    for call in subject.calls(rows=[48]):
        if call.rows is None and not cuda:
            continue
        module, watch = subject.build(call), Watch(writes=False)
        warm(module, subject.draw(dataclasses.replace(call, rows=64 if call.rows else None)))
        if cuda:
            try:
                graphed = Graphed(module, subject.draw(call), warm_ups=0, watching=watch)
            except RuntimeError as error:
                raise Skip(f"not captured: {error}") from error
            graphed.outputs = None
        else:
            arguments = subject.draw(call)
            with torch.no_grad(), watch:
                module(*arguments)
        kind = subject.device.type  # what lies in host memory lies in no graph's pool
        where = [(s.where, {t.untyped_storage()._cdata for t in tensors(s.result) if t.device.type == kind})
                 for s in watch.seen]  # fmt: skip
        device = set().union(*(made for _, made in where))
        watch.seen.clear()
        gc.collect()
        held = [s for s in watch.born if not s.expired() and s.cdata in device]
        if held:
            warm(module, subject.draw(dataclasses.replace(call, rows=64 if call.rows else None), seed=1))
            gc.collect()
        kept = [s for s in held if not s.expired()]  # what the next call lets go is the workspace stage's matter
        if kept:
            found = True
            text = f"{len(kept)} tensors that were allocated during the capture are still held after it"
            if not cuda:
                text = f"predicted: a call of 48 rows after one of 64 keeps {len(kept)} tensors that it allocated"
            line = next((w for w, made in where if made & {s.cdata for s in kept}), Evidence())
            evidence = line.model_copy(update={"text": text})
            yield Finding(code="CG_ALLOC_IN_POOL", bucket=str(call), evidence=evidence, predicted=not cuda)
    if not found:
        need_cuda(subject, predicted="tensors that a call of another size keeps")
