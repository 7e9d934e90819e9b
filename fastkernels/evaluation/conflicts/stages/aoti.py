"""aoti: operators that exist in Python alone. A package made ahead of time is loaded where that Python is not."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.subject import Subject


def check_aoti(subject: Subject) -> Iterator[Finding]:
    """Where each operator of a call has its schema from, in torch's own list of those defined from Python."""
    for call in subject.calls(rows=[8]):
        with torch.no_grad(), Watch(writes=False) as watch:
            subject.build(call)(*subject.draw(call))
        python = sorted({s.name for s in watch.foreign()} & torch.library._defs)
        if python:
            text = (
                f"{', '.join(python)} defined from Python: a package made ahead of time, loaded in a process without "
                f"it, raises 'Could not find schema for {python[0]}'"
            )
            evidence = Evidence(text=text, node=python[0])
            yield Finding(code="EX_AOTI", bucket=str(call), evidence=evidence, advisory=True)
