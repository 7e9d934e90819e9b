"""Is the implementation right? Draws of every family, each call twice in poisoned memory, through shared buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastkernels.evaluation.bench.inputs import Drawn, clone, drawn_inputs
from fastkernels.evaluation.bench.judge import Verdict, judge_drawn, same_bits
from fastkernels.evaluation.bench.replies import Called, RunnerFailed
from fastkernels.evaluation.bench.result import Failure
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.strided import strided

MOST_FAILURES = 6
STRIDED = "strided"
KEPT_ENDS = 8  # elements at both ends of a tensor that a shuffle leaves alone


@dataclass(kw_only=True)
class Judged:
    """What all calls of a case showed; ``worst`` is the verdict that is furthest out."""

    failures: list[Failure] = field(default_factory=list)
    worst: Verdict | None = None
    draws: int = 0
    sharing: list[set[str]] = field(default_factory=list)

    def note(self, verdict: Verdict) -> None:
        """Takes up one call's verdict."""
        self.failures += verdict.failures
        if self.worst is None or _excess(verdict) > _excess(self.worst):
            self.worst = verdict


def judged(runner: Runner, site: Site, seed: int, *, hidden: bool = True) -> Judged:
    """Calls the built implementation on every draw and judges it; ``hidden`` as of ``drawn_inputs``.

    Raises:
        RunnerFailed: the child died, hangs or forged a reply. What it only raises is a failure of the draw.
    """
    found = Judged()
    history: dict[Any, list[tuple[Any, Any]]] = {}
    for drawn in _draws(site, seed, hidden=hidden):
        if not found.draws:
            found.sharing = site.own_sharing(clone(drawn.arguments))
        found.draws += 1
        try:
            _judge_one(runner, site, drawn, found, history)
        except RunnerFailed as error:
            if not runner.alive:
                raise
            if drawn.name == STRIDED:
                continue  # it says so, and computes nothing wrong
            found.failures.append(Failure(code=error.code, where=drawn.name, detail=error.detail))
        if len(found.failures) >= MOST_FAILURES:
            break
    return found


def _judge_one(runner: Runner, site: Site, drawn: Drawn, found: Judged, history: dict[Any, Any]) -> None:
    places = site.give(runner, drawn.arguments)
    (outputs,) = site.outputs_for(runner, [drawn.expected])
    called = runner.call(places, outputs)
    verdict = judge_drawn(drawn, called.outputs, site.given(places), task=site.task, dtype=site.dtype)
    former = history.setdefault(repr(places), [])
    if any(f.code == "WRONG_OUTPUT" for f in verdict.failures) and _stale(called.outputs, drawn, former):
        detail = "the same buffers with other contents still gave the output of an earlier call"
        verdict.failures[:] = [Failure(code="STALE_OUTPUT", where=drawn.name, detail=detail)]
    if not verdict.failures:
        former.append((clone(called.outputs), drawn.expected))
    found.note(verdict)
    found.failures += unlike_tensors(called, found.sharing, drawn.name)
    if not site.parameters_intact():
        found.failures.append(Failure(code="MUTATED_INPUT", where=drawn.name, detail="a parameter was changed"))
        site.publish()
    site.give(runner, drawn.arguments)
    again = runner.call(places, outputs)
    if runner.nondeterministic:
        found.note(judge_drawn(drawn, again.outputs, site.given(places), task=site.task, dtype=site.dtype))
    elif not verdict.failures and not same_bits(_plain(called.outputs), _plain(again.outputs)):
        detail = "the same call twice gave different bits"
        found.failures.append(Failure(code="NONDETERMINISTIC", where=drawn.name, detail=detail))


def unlike_tensors(called: Called, sharing: list[set[str]], where: str) -> list[Failure]:
    """Outputs that are no plain tensors, or that share memory which the reference's own do not share."""
    failures = []
    for i, fact in enumerate(called.facts):
        if fact.get("type") != "Tensor":
            detail = f"output {i} is a {str(fact.get('type'))[:80]}, not a plain torch.Tensor"
            failures.append(Failure(code="WRONG_TYPE", where=where, detail=detail))
        allowed = sharing[i] if i < len(sharing) else set()
        extra = sorted({str(s)[:80] for s in fact.get("shares", ())} - allowed)
        if extra:
            detail = f"output {i} shares memory with {', '.join(extra)}"
            failures.append(Failure(code="ALIASED", where=where, detail=detail))
    return failures


def _draws(site: Site, seed: int, *, hidden: bool) -> Iterator[Drawn]:
    """The task's draws; after the first also its elements in another order: ends, sum and extremes are the same; and
    that one with gaps between its rows, where the reference takes them."""
    first = True
    for drawn in drawn_inputs(
        site.task, site.case, dtype=site.dtype, device=site.device, seed=seed, reference=site.reference, hidden=hidden
    ):
        yield drawn
        if first and drawn.family == "random":
            first = False
            generator = torch.Generator(site.device).manual_seed(seed ^ 0x5A5A)
            shuffled = site.referee.expect(_shuffled(drawn.arguments, generator), name="shuffled", family="structured")
            if shuffled is not None and not shuffled.ill_conditioned(site.dtype):
                yield shuffled
                spaced = strided(shuffled.arguments) if hidden else None
                if spaced is not None and site.takes(strided(shuffled.arguments)):  # which it may write to
                    yield replace(shuffled, name=STRIDED, arguments=spaced)


def _shuffled(arguments: Any, generator: torch.Generator) -> Any:
    def one(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() <= 2 * KEPT_ENDS:
            return tensor.clone()
        flat = tensor.reshape(-1).clone()
        inner = flat[KEPT_ENDS:-KEPT_ENDS]
        order = torch.randperm(inner.numel(), generator=generator, device=tensor.device)
        flat[KEPT_ENDS:-KEPT_ENDS] = inner[order]
        return torch.empty_like(tensor).copy_(flat.reshape(tensor.shape))

    return pytree.tree_map_only(torch.Tensor, one, arguments)


def _stale(outputs: Any, drawn: Drawn, former: list[tuple[Any, Any]]) -> bool:
    """Whether these outputs are those of an earlier call on the same buffers, which were right then."""
    return any(
        same_bits(_plain(outputs), _plain(old)) and not same_bits(drawn.expected, expected) for old, expected in former
    )


def _plain(outputs: Any) -> list[Any]:
    """Tensors only; those without contents are left out."""
    leaves = pytree.tree_leaves(outputs)
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.device.type != "meta"]


def _excess(verdict: Verdict) -> float:
    return max(
        (e / limit if limit else float(e > 0))
        for e, limit in ((verdict.error.l2, verdict.limit.l2), (verdict.error.peak, verdict.limit.peak))
    )
