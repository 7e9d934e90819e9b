"""autotune: a bucket captured while only another one is warm must not compile or tune inside the capture."""

from __future__ import annotations

from collections.abc import Iterator

from fastkernels.evaluation.conflicts.graphed import Graphed, where_of
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Subject


def check_autotune(subject: Subject) -> Iterator[Finding]:
    """One warm capture, which must pass; then one cold one, as after a failed one the context is not to be trusted.

    Compilers treat the cold size as they treat the warm one (both divide by 16); a tuner that is keyed by it does not.
    """
    need_cuda(subject)
    calls = list(subject.calls(rows=[16, 64], cases=1))
    if calls[0].rows is None:
        raise Skip("no case of the task can be redrawn to other sizes")
    small, large = calls[:2]
    module = subject.build(large)
    try:
        Graphed(module, subject.draw(small))
    except RuntimeError as error:
        raise Skip(f"not captured when warm: {error}") from error
    try:
        Graphed(module, subject.draw(large), warm_ups=0)
    except RuntimeError as error:
        yield Finding(code="CG_JIT_IN_CAPTURE", bucket=str(large), evidence=where_of(error))
