"""Which parameter a candidate does not read, and whether it reads a copy from its construction instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.conflicts.compare import same_bits, warm
from fastkernels.evaluation.conflicts.subject import Call, Subject


def blind_parameter(subject: Subject, call: Call) -> str | None:
    """The name of a parameter whose change moves the reference's result and not the candidate's, or None; each is
    changed in place between two calls of one module."""
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


def keeps_initial_values(subject: Subject, call: Call) -> bool:
    """Whether the result still depends on what the parameters held when the module was constructed, though all of them
    have been given new values since."""
    results = []
    for value in (0.5, 0.5, -2.0):
        with _initialised(value):
            module = subject.build(call)
        results.append(warm(module, subject.draw(call)))
    return same_bits(results[0], results[1]) and not same_bits(results[0], results[2])


@contextlib.contextmanager
def _initialised(value: float) -> Iterator[None]:
    """Every parameter holds ``value`` when it is registered."""
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: Any) -> None:
        if param is not None and param.is_floating_point():
            with torch.no_grad():
                param.fill_(value)
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]  # for a while, in the stage's own process
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
