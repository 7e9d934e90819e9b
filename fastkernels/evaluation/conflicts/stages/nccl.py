"""nccl: collectives inside a capture."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject


def check_nccl(subject: Subject) -> Iterator[Finding]:
    """A single process has no peers: a candidate that calls collectives is named, and not judged."""
    names: set[str] = set()
    for call in subject.calls(rows=[8], cases=1):
        with torch.no_grad(), Watch() as watch:
            subject.build(call)(*subject.draw(call))
        names |= {s.name for s in watch.seen if s.op.namespace in ("c10d", "_c10d_functional")}
    if names:
        raise Skip(f"calls {', '.join(sorted(names))}: a capture of these needs two ranks")
    yield from ()
    raise Skip("the candidate calls no collective")
