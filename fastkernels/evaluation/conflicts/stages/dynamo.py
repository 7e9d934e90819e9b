"""dynamo: the module as one graph, in each representative case; a break is told from its cause, not its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastkernels.evaluation.conflicts.capture import Uncapturable, capture
from fastkernels.evaluation.conflicts.interpreted import interpreted
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.side_effect import side_effect
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject


def check_dynamo(subject: Subject) -> Iterator[Finding]:
    """Small and large buckets: a break may sit in one branch only."""
    calls = [
        *subject.calls(rows=[8]),
        *(c for c in subject.calls(rows=[2, 64], cases=1) if c.dtype == subject.dtypes[0]),
    ]
    for call in calls:
        try:
            capture(subject.build(call), subject.draw(call))
        except Uncapturable as error:
            if interpreted(subject.candidate.cls):
                raise Skip("Triton runs interpreted (TRITON_INTERPRET=1): its kernels cannot be traced") from error
            code, evidence = error.code, error.evidence
            if code == "GB_UNTRACEABLE_CALL":
                module, arguments = subject.build(call), subject.draw(call)

                def run(module: Any = module, arguments: Any = arguments) -> None:
                    with torch.no_grad():
                        module(*arguments)

                effect = side_effect(run)
                if effect is not None:
                    code = "GB_SIDE_EFFECT"
                    evidence = evidence.model_copy(update={"text": f"{effect}; {evidence.text}"})
            yield Finding(code=code, bucket=str(call), evidence=evidence)
