"""weights: after a first call, parameters updated in place and swapped by ``.data`` must be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fastkernels.evaluation.conflicts.compare import warm
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors
from fastkernels.tasks.accuracy import measure


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Both kinds of update, on each representative."""
    asked = [c for c in subject.calls(rows=[8]) if any(True for _ in subject.reference(c).parameters())]
    if not asked:
        raise Skip("no parameters")
    for call in asked:
        for how, change in (("in place", _in_place), (".data swap", _swapped)):
            yield from _after(subject, call, how, change)


def _after(subject: Subject, call: Call, how: str, change: Callable[[nn.Parameter], None]) -> Iterator[Finding]:
    module, reference = subject.build(call), subject.reference(call)
    old = warm(module, subject.draw(call))
    for target in (module, reference):
        for parameter in target.parameters():
            change(parameter)
    new, want = warm(module, subject.draw(call)), warm(reference, subject.draw(call))
    for i, (o, n, w) in enumerate(zip(*map(tensors, (old, new, want)), strict=False)):
        error = measure(n, w).l2
        moved = measure(o, w).l2
        limit = 0.05 if call.dtype != torch.float32 else 1e-3
        if error > limit and moved > limit:
            text = (
                f"parameters updated {how}: output {i} is off by {error:.1e} (by {measure(n, o).l2:.1e} from the old)"
            )
            yield Finding(code="ST_STALE_WEIGHT", bucket=str(call), evidence=Evidence(text=text))


def _in_place(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(-1.5)


def _swapped(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data * -1.5
