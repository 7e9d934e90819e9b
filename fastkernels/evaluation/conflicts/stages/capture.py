"""capture: each bucket into a CUDA graph, warmed by the same bucket."""

from __future__ import annotations

from collections.abc import Iterator

from fastkernels.evaluation.conflicts.fake_cuda import device_moves
from fastkernels.evaluation.conflicts.graphed import Graphed, code_of, where_of
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import need_cuda
from fastkernels.evaluation.conflicts.subject import Subject


def check_capture(subject: Subject) -> Iterator[Finding]:
    """Stops at the first capture that fails: the CUDA context is not to be trusted after it."""
    if subject.device.type == "cuda":
        for call in subject.calls():
            try:
                Graphed(subject.build(call), subject.draw(call))
            except RuntimeError as error:
                yield Finding(code=code_of(error), bucket=str(call), evidence=where_of(error))
                return
        return
    found = False
    for call in subject.calls(rows=[8]):
        for move in device_moves(subject, call):
            if move.kind == "mixed":
                found = True
                yield Finding(code="CG_CPU_TENSOR", bucket=str(call), evidence=move.where, predicted=True)
    if not found:
        need_cuda(subject, predicted="CPU tensor among device tensors")
