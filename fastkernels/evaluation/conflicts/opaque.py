"""The candidate behind an opaque operator, for the run after the mend."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fastkernels.evaluation.conflicts.subject import Rebuild
from fastkernels.runtime.candidate import Candidate
from fastkernels.tasks.task import Case


class Unmendable(Exception):
    """The opaque lowering is not there, or refuses the candidate; the message is the reason."""


class Wrapped(nn.Module):
    """A candidate whose forward is its opaque operator; parameters keep their names."""

    def __init__(self, inner: nn.Module, call: Any) -> None:
        super().__init__()
        for name, parameter in inner.named_parameters(recurse=False):
            setattr(self, name, parameter)
        for name, child in inner.named_children():
            setattr(self, name, child)
        self.opaque = call  # the operator lives as long as this does
        self.call = call.forward

    def forward(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def opaque(candidate: Candidate) -> Rebuild:
    """A function that puts a built module behind its operator.

    Raises:
        Unmendable: this library has no opaque lowering.
    """
    try:
        from fastkernels.runtime.opaque import make_opaque
    except ImportError as error:
        raise Unmendable("no opaque lowering") from error

    def rebuild(module: nn.Module, case: Case) -> nn.Module:
        facts = inspect.signature(candidate.task.interface).bind(**case.init)
        facts.apply_defaults()
        call = make_opaque(
            module,
            task=candidate.task,
            facts=dict(facts.arguments),
            digest=candidate.digest,
            reference=candidate.task.interface(**case.init),
        )
        return Wrapped(module, call)

    return rebuild
