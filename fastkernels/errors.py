"""The errors users meet. Each message names the module path, the candidate, the rule broken and the way out."""

from __future__ import annotations


class FastkernelsError(Exception):
    """Base of every error this library raises on purpose."""


class CandidateError(FastkernelsError):
    """A candidate cannot be loaded, built or called as its task's interface says."""


class PatchError(FastkernelsError):
    """A patch cannot be applied or undone as asked; the model is as it was before the call."""


class LoweringError(FastkernelsError):
    """A candidate cannot enter the compile stack as asked."""


class BackendError(FastkernelsError):
    """``torch.compile(backend="fastkernels")`` was given something that it does not know."""


class EvaluationError(FastkernelsError):
    """A scenario, a result or an arm of an evaluation is not as it must be."""


class ServingError(FastkernelsError):
    """An engine cannot serve with the candidates as asked; by default it does not start."""
