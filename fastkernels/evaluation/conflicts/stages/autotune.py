"""autotune: a bucket captured while only another one is warm must not compile or tune inside the capture."""

from __future__ import annotations

from collections.abc import Iterator

from fastkernels.evaluation.conflicts.compare import warm
from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import need_cuda
from fastkernels.evaluation.conflicts.subject import Subject


def check_autotune(subject: Subject) -> Iterator[Finding]:
    """One cold capture, as after a failed one the context is not to be trusted.

    Compilers treat the cold size as they treat the warm one (both divide by 16); a tuner that is keyed by it does not.
    """
    need_cuda(subject)
    calls = list(subject.calls(rows=[16, 64], cases=1))
    small, large = calls[0], calls[min(1, len(calls) - 1)]
    module = subject.build(large)
    warm(module, subject.draw(small))
    try:
        Graphed(module, subject.draw(large), warm_ups=0)
    except RuntimeError as error:
        yield Finding(code="CG_JIT_IN_CAPTURE", bucket=str(large), evidence=frame_of(error))
