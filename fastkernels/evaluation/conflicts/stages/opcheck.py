"""opcheck: torch's own test of each operator the candidate brings, on a small and a larger bucket."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject

# Autograd registration is the backward stage's business: inference candidates need none.
TESTS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def check_opcheck(subject: Subject) -> Iterator[Finding]:
    """Each operator, once a call."""
    done = False
    for call in subject.calls(rows=[2, 17]):
        module = subject.build(call)  # alive to the end: an operator may be unregistered with it
        with torch.no_grad(), Watch() as watch:
            module(*subject.draw(call))
        for name in dict.fromkeys(s.name for s in watch.foreign()):
            seen = next(s for s in watch.foreign() if s.name == name)
            done = True
            results = torch.library.opcheck(
                seen.op, seen.args, seen.kwargs, test_utils=TESTS, raise_exception=False, rtol=0.05, atol=0.05
            )
            for test, result in results.items():
                if result != "SUCCESS":
                    where = seen.where.model_copy(update={"node": name, "text": f"{test}: {result}"[:1500]})
                    yield Finding(code=_code(test, str(result)), bucket=str(call), evidence=where)
    if not done:
        raise Skip("the candidate brings no operator of its own")


def _code(test: str, text: str) -> str:
    if test == "test_schema":
        for code, words in (("MU_UNDECLARED", "mutat"), ("AL_OUTPUTS_SHARE", "outputs"), ("AL_INPUT_OUTPUT", "alias")):
            if words in text.lower():
                return code
        return "OP_CHECK"
    if test == "test_faketensor":
        for code, words in (("FK_MISSING", "no fake impl"), ("FK_DTYPE", "dtype"), ("FK_STRIDE", "stride")):
            if words in text.lower():
                return code
        return "FK_SHAPE"
    return "OP_CHECK"
