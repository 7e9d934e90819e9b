"""import: the file imports, names a task, and its parameters carry the reference's names."""

from __future__ import annotations

from collections.abc import Iterator

from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject


def check_import(subject: Subject) -> Iterator[Finding]:
    """The loading itself was done to get here; what is left is that there is a case to run."""
    if not subject.cases:
        reasons = {subject.refusal(c) for c in subject.task.cases() if not c.production}
        raise Skip(f"no case of {subject.task.name} is for this candidate on {subject.device.type}: "
                   f"{'; '.join(sorted(r for r in reasons if r))}")  # fmt: skip
    yield from ()
