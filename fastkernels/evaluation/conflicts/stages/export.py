"""export: torch.export of the module, and its program against eager."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastkernels.evaluation.conflicts.capture import Uncapturable, capture
from fastkernels.evaluation.conflicts.compare import close, warm
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject


def check_export(subject: Subject) -> Iterator[Finding]:
    """One call of each representative; blamed only where the reference exports and Dynamo takes the candidate."""
    for call in subject.calls(rows=[8]):
        if call.dtype != subject.dtypes[0]:
            continue
        try:
            wrong = _wrong(subject, call, subject.build(call))
        except Exception as error:  # noqa: BLE001 - export may raise anything; that is the finding
            _check_blame(subject, call)
            yield Finding(code="EX_EXPORT", bucket=str(call), evidence=frame_of(error))
            continue
        if wrong is not None:
            yield Finding(code="EX_EXPORT", bucket=str(call), evidence=Evidence(text=f"exported: {wrong}"))


def _check_blame(subject: Subject, call: Call) -> None:
    try:
        capture(subject.build(call), subject.draw(call))
    except Uncapturable as error:
        raise Skip(f"not captured: {error}") from error
    try:
        _wrong(subject, call, subject.reference(call))
    except Exception as error:
        raise Skip(f"the reference does not export either: {frame_of(error).text}") from error


def _wrong(subject: Subject, call: Call, module: nn.Module) -> str | None:
    eager = warm(module, subject.draw(call))
    with torch.no_grad():
        program = torch.export.export(module, subject.draw(call))
        got = program.module()(*subject.draw(call))
    return close(got, eager, subject, call.dtype)
