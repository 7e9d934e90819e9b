"""Is a candidate right at a site? The original, the candidate and a high-precision oracle on the same inputs."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.patches.build import bound_reference
from fastkernels.patches.output import check_output
from fastkernels.patches.probe import quiet
from fastkernels.patches.site import Draws, Forward, ProbeRefusal, Proposal, Scenario
from fastkernels.runtime.launch import Launcher, compiling_ahead
from fastkernels.runtime.lowering import fresh
from fastkernels.tasks import Task, get_task
from fastkernels.tasks.accuracy import Error, measure, worst


def verify(
    *,
    module: nn.Module,
    proposal: Proposal,
    implementation: Forward,
    original: Forward,
    dtype: torch.dtype,
    device: torch.device,
    where: str,
    label: str,
) -> str | None:
    """Runs the proposal's scenarios on the live weights; returns None, or why the candidate is refused.

    The oracle is the task's reference in float64 (float32 for half precision); the candidate's error may be the
    original's own times the accuracy class's factor plus its floor.
    """
    task = get_task(proposal.task)
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    with quiet(module):
        reference = bound_reference(module, proposal, dtype=wide)
        base_errors: list[Error] = []
        errors: list[Error] = []

        def draws(as_dtype: torch.dtype) -> Draws:
            return Draws(seed=11, device=device, dtype=as_dtype, site_dtype=dtype)

        candidate = proposal.as_forward(_watched(implementation, task, where=where, label=label))
        oracles = proposal.scenarios(draws(wide))
        if device.type == "cuda" and Launcher.exists:
            _compile_ahead(proposal.scenarios(draws(dtype)), proposal.as_forward(implementation))
        for scenario, oracle_scenario in zip(proposal.scenarios(draws(dtype)), oracles, strict=True):
            try:
                oracle = oracle_scenario(proposal.as_forward(reference.forward))
            except ProbeRefusal as refusal:
                return f"its own probe call is not carried over: {refusal}"
            want = scenario(original)
            got = _run(scenario, candidate, where=where, label=label, task=task.name)
            check_output(got, want, where=where, label=label, task=task.name)
            base_errors += [measure(w, o) for w, o in zip(want, oracle, strict=True)]
            errors += [measure(g, o) for g, o in zip(got, oracle, strict=True)]
    base, error = worst(base_errors), worst(errors)
    if task.accuracy.accepts(error, base, dtype):
        return None
    limit = task.accuracy.limit(base, dtype)
    name = str(dtype).removeprefix("torch.")
    return (
        f"candidate {label} is off by {error} against the {wide} reference of {task.name} in {name}; "
        f"the tolerance is {limit} (the original's own error: {base})"
    ).replace("torch.", "")


def first_call(
    module: nn.Module, proposal: Proposal, implementation: Forward, *, dtype: torch.dtype, device: torch.device
) -> tuple[Any, ...] | None:
    """Arguments of the first call that the proposal's scenarios make of the interface; None where they make none."""
    calls: list[tuple[Any, ...]] = []

    def recorded(*call: Any) -> Any:
        calls.append(tuple(fresh(call)))
        return implementation(*call)

    with quiet(module):
        for scenario in proposal.scenarios(Draws(seed=11, device=device, dtype=dtype, site_dtype=dtype)):
            with contextlib.suppress(ProbeRefusal):
                scenario(proposal.as_forward(recorded))
            if calls:
                return calls[0]
    return None


def _compile_ahead(scenarios: Iterator[Scenario], candidate: Forward) -> None:
    """Starts the compilation of every kernel that the scenarios meet, to go on while the oracle and original run."""
    with compiling_ahead():
        for scenario in scenarios:
            # On values that were not computed anything may be raised; the run that counts says what is wrong.
            with contextlib.suppress(Exception):
                scenario(candidate)


def _run(scenario: Scenario, candidate: Forward, *, where: str, label: str, task: str) -> list[Any]:
    try:
        return scenario(candidate)
    except (ProbeRefusal, CandidateError):
        raise
    except Exception as error:
        raise CandidateError(
            f"{where}: candidate {label} raised {type(error).__name__} on a call that {task} allows: {error}"
        ) from error


def _watched(implementation: Forward, task: Task, *, where: str, label: str) -> Forward:
    """``implementation``, with an error if it writes to an argument that the task does not declare as mutated."""
    names = list(inspect.signature(task.interface.forward).parameters)[1:]

    def watched(*call: Any) -> Any:
        before = [(n, a, a.clone()) for n, a in zip(names, call, strict=False) if isinstance(a, torch.Tensor)]
        result = implementation(*call)
        for name, argument, was in before:
            if name not in task.mutates and not torch.equal(argument, was):
                raise CandidateError(
                    f"{where}: candidate {label} changed its argument {name} in place; {task.name} mutates "
                    f"{', '.join(task.mutates) or 'nothing'}. Write to a new tensor."
                )
        return result

    return watched
