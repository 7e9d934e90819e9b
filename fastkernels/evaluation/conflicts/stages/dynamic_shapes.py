"""dynamic_shapes: a batch size marked dynamic must stay symbolic, without a Python branch on it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from fastkernels.evaluation.conflicts.capture import Captured, Uncapturable, capture
from fastkernels.evaluation.conflicts.observe import frame_of, is_user_file
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, leading, tensors

PYTHON_BRANCH = "_dynamo/variables"  # where a size that Python code compares is evaluated
SIZES = (8, 64)


def check_dynamic_shapes(subject: Subject) -> Iterator[Finding]:
    """Traces at several sizes, all of them symbolic; the reference must pass what the candidate is blamed for."""
    asked = [c for c in subject.calls(rows=SIZES) if c.rows is not None and c.dtype == subject.dtypes[0]]
    if not asked:
        raise Skip("no case of the task can be redrawn to other sizes")
    for call in asked:
        found = _trace(subject, call, subject.build(call))
        if found is not None and _trace(subject, call, subject.reference(call)) is None:
            yield found


def _trace(subject: Subject, call: Call, module: torch.nn.Module) -> Finding | None:
    arguments = subject.draw(call)
    size = leading(arguments)
    for t in tensors(arguments):
        if t.dim() and t.shape[0] == size:
            torch._dynamo.mark_dynamic(t, 0)
    try:
        captured = capture(module, arguments)
    except Uncapturable as error:
        raise Skip(f"not captured: {error}") from error
    except (ConstraintViolationError, torch._dynamo.exc.TorchDynamoException) as error:
        return Finding(code="DS_SPECIALIZED", bucket=str(call), evidence=_violation(error))
    return next(_branches(subject, captured, str(call)), None)


def _branches(subject: Subject, captured: Captured, bucket: str) -> Iterator[Finding]:
    for guards in captured.guards:
        for guard in guards:
            if PYTHON_BRANCH in str(guard.sloc):
                frame = _user(subject, guard)
                text = f"a branch on a size: {guard.expr}; {guard.sloc}"[:600]
                evidence = Evidence(text=text, file=frame.file, line=frame.line)
                yield Finding(code="DS_SHAPE_GUARD", bucket=bucket, evidence=evidence)


def _user(subject: Subject, guard: Any) -> Evidence:
    """The guard knows the tail of a path and a line; the candidate's own file gets its whole path back."""
    found = re.search(r"# (\S+):(\d+) in ", str(guard.sloc))
    if found is None:
        return Evidence()
    own = str(getattr(sys.modules[subject.candidate.cls.__module__], "__file__", ""))
    return Evidence(file=own if own.endswith(found[1].lstrip("./")) else found[1], line=int(found[2]))


def _violation(error: Exception) -> Evidence:
    """The constraint's own text names the line in which the size became a constant."""
    found = frame_of(error)
    if found.file is not None:
        return found
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith('File "')]
    own = [line for line in lines if is_user_file(line.split('"')[1])]
    if not own:
        return found
    name, rest = own[-1].split('"')[1], own[-1].split("line ")[1]
    return found.model_copy(update={"file": name, "line": int(rest.split(",")[0])})
