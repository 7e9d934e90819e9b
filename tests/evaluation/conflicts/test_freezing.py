"""What the freezing stage concludes from a graph is what Inductor's freezing does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastkernels.evaluation.conflicts.subject import Subject, tensors
from fastkernels.evaluation.conflicts.target import Target

BAD = Path(__file__).parent / "candidates" / "bad" / "FZ_CONST_FOLDED.py"


@pytest.mark.slow
def test_a_frozen_candidate_keeps_its_old_weight_where_the_reference_does_not():
    import torch._inductor.config as inductor

    subject = Subject(candidate=Target(file=BAD).load(), device=torch.device("cpu"))
    call = next(iter(subject.calls(rows=[8])))
    stale = {}
    for build in (subject.build, subject.reference):
        module, arguments = build(call), subject.draw(call)
        torch._dynamo.reset()
        with torch.no_grad(), inductor.patch(freezing=True):
            frozen = torch.compile(module)
            frozen(*arguments)
            for parameter in module.parameters():
                parameter.mul_(-1.5)
            got, want = tensors(frozen(*arguments)), tensors(module(*arguments))
        stale[build.__name__] = not all(map(torch.allclose, got, want))
    assert stale == {"build": True, "reference": False}
