"""execution: is it the candidate that runs? Its kernels in an eager call, and the same ones in the compiled graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.lowered import lower
from fastkernels.evaluation.conflicts.own_kernels import kernels_in, own_kernels
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.stages.compiled import operators
from fastkernels.evaluation.conflicts.subject import Call, Subject
from fastkernels.evaluation.conflicts.swallowed import swallowed, swallowed_at_import


def check_execution(subject: Subject) -> Iterator[Finding]:
    """Failures first: a bypass to the task's reference, or after an exception; a branch of the candidate's own to
    torch's operators is only remarked on."""
    found: list[Finding] = []
    for call in subject.calls(rows=[8]):
        found += _of_call(subject, call, again=not found)
    yield from sorted(found, key=lambda f: f.advisory)


def _of_call(subject: Subject, call: Call, *, again: bool) -> Iterator[Finding]:
    """``again``: lower once more where an exception may be why, and watch for it, which is slow."""
    given_up = _given_up(subject, call)
    if given_up is not None:
        yield Finding(code="IN_NOT_EXECUTED", bucket=f"{call} eager", evidence=given_up)
        return
    with torch.no_grad():
        module = subject.build(call)
        module(*subject.draw(call))
        with own_kernels() as eager:
            module(*subject.draw(call))
    if not eager:
        return
    mine = lower(subject.build(call), subject.draw(call))
    there = operators(mine.dynamo) | operators(mine.aot) | kernels_in(mine.dynamo) | kernels_in(mine.aot)
    lost = sorted(eager - there)
    if not lost:
        return
    text = f"{', '.join(lost)}: run in eager mode, not in the compiled graph, which has "
    caught: list[Evidence] = []
    reference = subject.task.interface.forward.__code__ in mine.traced
    if not reference and again:
        with swallowed() as caught:
            lower(subject.build(call), subject.draw(call))
    text += "the task's reference in the place" if reference else "operators of torch's in the place"
    text += f"; while compiling, caught: {caught[-1].text}" if caught else ""
    evidence = (caught[-1] if caught else Evidence()).model_copy(update={"text": text, "node": lost[0]})
    advisory = not reference and not caught
    yield Finding(code="IN_NOT_EXECUTED", bucket=f"{call} compiled", evidence=evidence, advisory=advisory)


def _given_up(subject: Subject, call: Call) -> Evidence | None:
    """The exception after which a warm call runs nothing of the candidate's own, inside of operators either."""
    with torch.no_grad():
        module = subject.build(call)
        module(*subject.draw(call))
        with own_kernels(within=True) as ran:
            module(*subject.draw(call))
        if {name for name in ran if not name.startswith("fastkernels::")}:
            return None
        with swallowed() as caught:
            module(*subject.draw(call))
    evidence = caught[-1] if caught else swallowed_at_import(subject.candidate.cls)
    if evidence is None:
        return None
    return evidence.model_copy(update={"text": f"caught, and no kernel of the candidate's runs: {evidence.text}"})
