"""fastkernels: candidate kernels into live models, and proof of what they gained.

The public verbs; everything else is found in the package that it belongs to. Each is imported when it is first asked
for: engines import this package in every process of theirs, patched or not."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkernels.authoring.create_stubs import create_stubs
    from fastkernels.authoring.extract import extract
    from fastkernels.errors import CandidateError, EvaluationError, FastkernelsError, PatchError, ServingError
    from fastkernels.evaluation.bench.bench import bench
    from fastkernels.evaluation.capture.capture import capture
    from fastkernels.evaluation.conflicts.run import conflicts
    from fastkernels.evaluation.coverage.coverage import coverage
    from fastkernels.evaluation.e2e.evaluate import evaluate
    from fastkernels.evaluation.explain import explain
    from fastkernels.evaluation.profile.profile import profile
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
    "bench",
    "candidate",
    "capture",
    "conflicts",
    "coverage",
    "create_stubs",
    "evaluate",
    "explain",
    "extract",
    "patch",
    "plan",
    "profile",
]

_HOMES = {
    "authoring.create_stubs": ("create_stubs",),
    "authoring.extract": ("extract",),
    "errors": ("CandidateError", "EvaluationError", "FastkernelsError", "PatchError", "ServingError"),
    "evaluation.bench.bench": ("bench",),
    "evaluation.capture.capture": ("capture",),
    "evaluation.conflicts.run": ("conflicts",),
    "evaluation.coverage.coverage": ("coverage",),
    "evaluation.e2e.evaluate": ("evaluate",),
    "evaluation.explain": ("explain",),
    "evaluation.profile.profile": ("profile",),
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
