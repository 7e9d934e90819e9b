"""rng: randomness under graphs must come from torch's default generator; anything else repeats or fails."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.compare import same_bits, warm
from fastkernels.evaluation.conflicts.graphed import Graphed, code_of, where_of
from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Call, Subject


def check_rng(subject: Subject) -> Iterator[Finding]:
    """Generators of its own and Python's, from the trace; two replays that must differ, on a device."""
    found = False
    for call in subject.calls(rows=[8]):
        traced = list(_traced(subject, call))
        if subject.device.type == "cuda" and not traced:
            traced = list(_replayed(subject, call))
        for finding in traced:
            found = True
            yield finding
    if not found:
        need_cuda(subject, predicted="randomness outside the default generator")


def _traced(subject: Subject, call: Call) -> Iterator[Finding]:
    module = subject.build(call)
    warm(module, subject.draw(call))
    arguments = subject.draw(call)
    before = _host_states(subject)
    with torch.no_grad(), Watch() as watch:
        module(*arguments)
    moved = [name for name, state in _host_states(subject).items() if state != before.get(name, state)]
    for seen in watch.seen:
        own = [v for v in (*seen.args, *seen.kwargs.values()) if isinstance(v, torch.Generator)]
        if own:
            where = seen.where.model_copy(update={"text": f"predicted: {seen.name} draws from a generator of its own"})
            yield Finding(code="CG_RNG", bucket=str(call), evidence=where, predicted=True)
    if moved:
        text = f"predicted: {' and '.join(moved)} used; a graph would repeat the first value"
        yield Finding(code="CG_RNG", bucket=str(call), evidence=Evidence(text=text), predicted=True)


def _host_states(subject: Subject) -> dict[str, str]:
    """The states of the host's generators by name; torch's own for the CPU only where the inputs are on a device."""
    states = {"Python's random": repr(random.getstate())}
    if "numpy" in sys.modules:
        states["numpy.random"] = repr([part.tobytes() if hasattr(part, "tobytes") else part for part in
                                       sys.modules["numpy"].random.get_state()])  # fmt: skip
    if subject.device.type == "cuda":
        states["torch's generator for the CPU"] = repr(torch.get_rng_state().numpy().tobytes())
    return states


def _replayed(subject: Subject, call: Call) -> Iterator[Finding]:
    module = subject.build(call)
    if same_bits(warm(module, subject.draw(call)), warm(module, subject.draw(call))):
        return  # nothing random about it
    try:
        graphed = Graphed(module, subject.draw(call))
    except RuntimeError as error:
        if code_of(error) != "CG_RNG":
            raise Skip(f"not captured: {error}") from error
        yield Finding(code="CG_RNG", bucket=str(call), evidence=where_of(error))
        return
    if same_bits(graphed.replay(subject.draw(call)), graphed.replay(subject.draw(call))):
        text = "eager calls differ, two replays do not: the seed is frozen in the graph"
        yield Finding(code="CG_RNG", bucket=str(call), evidence=Evidence(text=text))
