"""streams: on a stream of the caller's, behind a slow producer, the candidate must wait as torch's own kernels do."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.compare import Judge, copied, warm
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import need_cuda
from fastkernels.evaluation.conflicts.subject import Subject, tensors

DELAY_CYCLES = 50_000_000  # some 30 ms: far longer than any launch


def check_streams(subject: Subject) -> Iterator[Finding]:
    """The inputs are written late on the side stream; a kernel on another stream reads them too early."""
    need_cuda(subject)
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
            text = f"on a side stream behind a delayed producer: {wrong}"
            yield Finding(code="CG_WRONG_STREAM", bucket=str(call), evidence=Evidence(text=text))
