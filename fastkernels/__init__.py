"""fastkernels: candidate kernels into live models, and proof of what they gained.

The public verbs; everything else is found in the package that it belongs to."""

from fastkernels.errors import CandidateError, EvaluationError, FastkernelsError, PatchError
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
    "Supports",
    "candidate",
    "conflicts",
    "coverage",
    "evaluate",
    "explain",
    "patch",
    "plan",
]
