"""capture: each bucket into a CUDA graph, warmed by the same bucket."""

from __future__ import annotations

from collections.abc import Iterator

from fastkernels.evaluation.conflicts.fake_cuda import faked, refusal
from fastkernels.evaluation.conflicts.graphed import Graphed, code_of, where_of
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import need_cuda
from fastkernels.evaluation.conflicts.stages.host_sync import copies_up
from fastkernels.evaluation.conflicts.subject import Subject


def check_capture(subject: Subject) -> Iterator[Finding]:
    """Stops at the first capture that fails: the CUDA context is not to be trusted after it."""
    if subject.device.type == "cuda":
        for call in subject.calls():
            try:
                Graphed(subject.build(call), subject.draw(call))
            except RuntimeError as error:
                code = code_of(error)
                if code == "CG_H2D_PAGEABLE" and not copies_up(subject, call):
                    code = "CG_SYNC"  # torch says the same of a copy down
                yield Finding(code=code, bucket=str(call), evidence=where_of(error))
                return
        return
    found = False
    for call in subject.calls(rows=[8]):
        moves, misuses = faked(subject, call)
        refused = refusal(subject, call)
        if refused is not None:
            found = True
            refused = refused.model_copy(update={"text": f"predicted, where the stream is captured: {refused.text}"})
            yield Finding(code="CG_CAPTURE_ERROR", bucket=str(call), evidence=refused, predicted=True)
        for misuse in misuses:
            if misuse.kind == "unjoined":
                found = True
                yield Finding(code="CG_UNJOINED_STREAM", bucket=str(call), evidence=misuse.where, predicted=True)
        for move in moves:
            if move.kind == "mixed":
                found = True
                yield Finding(code="CG_CPU_TENSOR", bucket=str(call), evidence=move.where, predicted=True)
    if not found:
        need_cuda(subject, predicted="CPU tensor among device tensors, no stream left open")
