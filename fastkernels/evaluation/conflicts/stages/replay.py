"""replay: new contents at the captured addresses must give new results, and no host value may be frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastkernels.evaluation.conflicts.compare import Judge, same_bits
from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.observe import host_reads
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors

REPLAYS = 3


def check_replay(subject: Subject) -> Iterator[Finding]:
    """Each bucket captured, then replayed with other values; a second graph in the same pool in between."""
    need_cuda(subject)
    for call in subject.calls():
        module = subject.build(call)
        try:
            graphed = Graphed(module, subject.draw(call))
            other = Graphed(module, subject.draw(call, seed=50), pool=graphed.graph.pool())
        except RuntimeError as error:
            raise Skip(f"not captured: {error}") from error
        try:
            yield from _replayed(subject, call, graphed, other)
        except RuntimeError as error:
            if "illegal memory access" not in str(error):
                raise
            text = f"a replay uses memory that was let go: {error}"
            yield Finding(code="CG_STALE_PTR", bucket=str(call), evidence=Evidence(text=text[:1500]))
            return


def _replayed(subject: Subject, call: Call, graphed: Graphed, other: Graphed) -> Iterator[Finding]:
    judge = Judge(subject, call)
    for seed in range(1, REPLAYS + 1):
        got = graphed.replay(subject.draw(call, seed=seed))
        kept = graphed.outputs
        wrong = judge.wrong(got, seed=seed)
        if wrong is not None:
            again = graphed.replay(subject.draw(call, seed=seed + 10))
            code, where = _cause(subject, call, frozen=same_bits(got, again))
            where = where.model_copy(update={"text": f"replay {seed}: {wrong}"})
            yield Finding(code=code, bucket=str(call), evidence=where)
            break
        other.replay(subject.draw(call, seed=seed + 20))
        if not same_bits(kept, got) and not _shares(kept, other.outputs):
            text = "replaying a second graph of the same pool changed the first graph's outputs"
            yield Finding(code="CG_ALLOC_IN_POOL", bucket=str(call), evidence=Evidence(text=text))
            break


def _shares(a: Any, b: Any) -> bool:
    mine = {t.untyped_storage().data_ptr() for t in tensors(a)}
    return any(t.untyped_storage().data_ptr() in mine for t in tensors(b))


def _cause(subject: Subject, call: Call, *, frozen: bool) -> tuple[str, Evidence]:
    """Frozen whole: the work was not captured. Else a value that the host read, if it reads any."""
    if frozen:
        return "CG_WRONG_STREAM", Evidence()
    with host_reads() as reads, torch.no_grad():
        subject.build(call)(*subject.draw(call))
    return ("CG_HOST_VALUE_BAKED", reads[0].where) if reads else ("CG_REPLAY", Evidence())
