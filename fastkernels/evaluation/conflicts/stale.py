"""Which parameter a candidate does not read: changed alone, the reference's result moves and the candidate's not."""

from __future__ import annotations

import torch

from fastkernels.evaluation.conflicts.compare import same_bits, warm
from fastkernels.evaluation.conflicts.subject import Call, Subject


def blind_parameter(subject: Subject, call: Call) -> str | None:
    """The name of such a parameter, or None; each is changed in place between two calls of one module."""
    for name, _ in subject.reference(call).named_parameters():
        moved = []
        for module in (subject.reference(call), subject.build(call)):
            target = dict(module.named_parameters()).get(name)
            if target is None:
                break
            try:
                before = warm(module, subject.draw(call))
                with torch.no_grad():
                    target.mul_(3.0)
                moved.append(not same_bits(before, warm(module, subject.draw(call))))
            except Exception:  # noqa: BLE001 - a candidate may raise anything; the caller has reported it
                return None
        if moved == [True, False]:
            return name
    return None
