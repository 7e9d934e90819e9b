"""fastkernels: candidate kernels into live models, and proof of what they gained.

The public verbs; everything else is found in the package that it belongs to. Each is imported when it is first asked
for: engines import this package in every process of theirs, patched or not."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkernels.errors import CandidateError, EvaluationError, FastkernelsError, PatchError, ServingError
    from fastkernels.evaluation.conflicts.run import conflicts
    from fastkernels.evaluation.coverage.coverage import coverage
    from fastkernels.evaluation.e2e.evaluate import evaluate
    from fastkernels.evaluation.explain import explain
    from fastkernels.patches.patch import Patch, patch, plan
    from fastkernels.patches.report import Report
    from fastkernels.runtime.candidate import Candidate, Supports, candidate
    from fastkernels.runtime.compile_report import CompileReport

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "CandidateError",
    "CompileReport",
    "EvaluationError",
    "FastkernelsError",
    "Patch",
    "PatchError",
    "Report",
    "ServingError",
    "Supports",
    "candidate",
    "conflicts",
    "coverage",
    "evaluate",
    "explain",
    "patch",
    "plan",
]

_HOMES = {
    "errors": ("CandidateError", "EvaluationError", "FastkernelsError", "PatchError", "ServingError"),
    "evaluation.conflicts.run": ("conflicts",),
    "evaluation.coverage.coverage": ("coverage",),
    "evaluation.e2e.evaluate": ("evaluate",),
    "evaluation.explain": ("explain",),
    "patches.patch": ("Patch", "patch", "plan"),
    "patches.report": ("Report",),
    "runtime.candidate": ("Candidate", "Supports", "candidate"),
    "runtime.compile_report": ("CompileReport",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
