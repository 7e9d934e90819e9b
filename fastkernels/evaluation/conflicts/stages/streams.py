"""streams: on a stream of the caller's, behind a slow producer, the candidate must wait as torch's own kernels do."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.compare import Judge, copied, warm
from fastkernels.evaluation.conflicts.fake_cuda import stream_misuses
from fastkernels.evaluation.conflicts.graphed import Graphed, code_of, where_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors

DELAY_CYCLES = 50_000_000  # some 30 ms: far longer than any launch


def check_streams(subject: Subject) -> Iterator[Finding]:
    """The inputs are written late on the side stream; a kernel on another stream reads them too early."""
    if subject.device.type != "cuda":
        yield from _predicted(subject)
        return
    for call in subject.calls(rows=[8, 64]):
        module, judge = subject.build(call), Judge(subject, call)
        warm(module, subject.draw(call, seed=1))
        held, fresh = subject.draw(call, seed=1), subject.draw(call)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.no_grad(), torch.cuda.stream(stream):
            torch.cuda._sleep(DELAY_CYCLES)
            for old, new in zip(tensors(held), tensors(fresh), strict=True):
                old.copy_(new)
            result = copied(module(*held))
        stream.synchronize()
        torch.cuda.synchronize()
        wrong = judge.wrong(result)
        if wrong is not None:
            with torch.no_grad():
                alone = module(*fresh)
            torch.cuda.synchronize()
            if (also := judge.wrong(alone)) is not None:
                raise Skip(f"wrong without another stream too: {also}")
            text = f"on a side stream behind a delayed producer: {wrong}"
            code, where = _forked(subject, call)
            text = f"{text}; {where.text}" if where.text else text
            yield Finding(code=code, bucket=str(call), evidence=where.model_copy(update={"text": text}))
            return  # the capture below may have spoilt the context


def _predicted(subject: Subject) -> Iterator[Finding]:
    found = False
    for call in subject.calls(rows=[8]):
        for misuse in stream_misuses(subject, call):
            if misuse.kind == "wrong":
                found = True
                yield Finding(code="CG_WRONG_STREAM", bucket=str(call), evidence=misuse.where, predicted=True)
    if not found:
        need_cuda(subject, predicted="work on a stream that waits for nothing")


def _forked(subject: Subject, call: Call) -> tuple[str, Evidence]:
    """A stream that waits for the current one, and for which nobody waits, is told by the end of a capture."""
    try:
        Graphed(subject.build(call), subject.draw(call))
    except RuntimeError as error:
        if code_of(error) == "CG_UNJOINED_STREAM":
            return "CG_UNJOINED_STREAM", where_of(error)
    return "CG_WRONG_STREAM", Evidence()
