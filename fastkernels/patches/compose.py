"""Which implementation goes to which site: outer before inner, candidates inside references, carriers for tasks
that a host has no module for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch

from fastkernels.errors import PatchError
from fastkernels.patches.recognise import Recognition
from fastkernels.patches.site import Site
from fastkernels.patches.source import join
from fastkernels.runtime.candidate import Candidate
from fastkernels.runtime.load import CandidateSet, reference_candidate
from fastkernels.tasks import Task, all_tasks, get_task

Select = str | list[str] | tuple[str, ...] | Callable[[Site], bool]


@dataclass(kw_only=True)
class Decision:
    """What happens at one site, and why; ``candidate`` may be the reference that carries others."""

    site: Site
    state: str
    candidate: Candidate | None = None
    reason: str = ""
    inside: Decision | None = None
    placed: list[str] = field(default_factory=list)
    carries: frozenset[str] = frozenset()  # tasks for whose sake a reference stands here


def selector(select: Select) -> Callable[[Site], bool]:
    """A predicate over sites from ``"all"``, a glob or several over ``path`` or ``path:task``, or a function."""
    if callable(select):
        return select
    patterns = [select] if isinstance(select, str) else list(select)
    if not all(isinstance(p, str) for p in patterns):
        raise PatchError(f"select: 'all', globs over module paths, or a function of a site; got {select!r}.")
    if patterns == ["all"]:
        return lambda site: True
    return lambda site: any(
        fnmatchcase(site.path, p) or fnmatchcase(f"{site.path}:{site.task.name}", p) for p in patterns
    )


def tasks_wanted(candidates: CandidateSet) -> frozenset[str]:
    """Tasks whose sites matter for these candidates: their own, those that may carry them, and what those need."""
    tasks = all_tasks()
    wanted = set(candidates.by_task)
    grown = True
    while grown:
        grown = False
        for task in tasks.values():
            if task.name not in wanted and wanted & set(task.parts):
                wanted.add(task.name)
                grown = True
    for name in list(wanted):
        wanted |= _all_parts(tasks[name], tasks)
    return frozenset(wanted)


def _all_parts(task: Task, tasks: Mapping[str, Task]) -> set[str]:
    parts = {p for p in task.parts if p in tasks}
    return parts.union(*(_all_parts(tasks[p], tasks) for p in parts)) if parts else parts


def decide_sites(recognition: Recognition, candidates: CandidateSet, select: Select) -> list[Decision]:
    """A decision for every site, outermost first. Applied ones may still turn out refused when they are built."""
    chosen = selector(select)
    with_seam = {s.task.name for s in recognition.sites}
    carried = frozenset(candidates.by_task) - with_seam
    decisions: list[Decision] = []
    for site in reversed(recognition.sites):
        task = site.task
        candidate = candidates.get(task.name)
        if not chosen(site):
            decisions.append(Decision(site=site, state="unmatched", reason="not selected"))
        elif site.proposal.gated and (candidate is not None or carried_by(site, carried)):
            decisions.append(Decision(site=site, state="gated", candidate=candidate, reason=site.proposal.gated))
        elif candidate is not None:
            refusal = fits(candidate, site, site.proposal.facts)
            state = "applied" if refusal is None else "gated"
            decisions.append(Decision(site=site, state=state, candidate=candidate, reason=refusal or ""))
        elif names := carried_by(site, carried):
            reference = reference_candidate(task)
            decisions.append(Decision(site=site, state="applied", candidate=reference, carries=names))
        else:
            decisions.append(Decision(site=site, state="unmatched", reason="no candidate for its task"))
    return decisions


def carried_by(site: Site, tasks: frozenset[str]) -> frozenset[str]:
    """Those of ``tasks`` for whose sake the site's reference may stand there."""
    return tasks & reach(site.task) if site.proposal.carrier else frozenset()


def reach(task: Task) -> frozenset[str]:
    """Tasks for whose sake a site's reference may stand there: its parts, and for a whole model those of its layers."""
    layers = (get_task(p) for p in task.parts if task.level == 4)
    return frozenset(task.parts).union(*(layer.parts for layer in layers if layer.level == 3))


def site_dtype(site: Site) -> torch.dtype:
    """The dtype a site runs in: as the host says, else of its own floating-point parameters."""
    if site.proposal.runs_on is not None:
        return site.proposal.runs_on[1]
    tensors = chain(site.module.parameters(), site.module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def site_device(site: Site) -> torch.device | None:
    """The device a site runs on: as the host says, else of its own parameters; None where neither tells."""
    if site.proposal.runs_on is not None:
        return site.proposal.runs_on[0]
    return next((t.device for t in chain(site.module.parameters(), site.module.buffers())), None)


def fits(candidate: Candidate, site: Site, facts: Mapping[str, Any]) -> str | None:
    """Why ``candidate`` may not run at ``site`` as it declares itself, or None."""
    device = site_device(site)
    if device is None or device.type == "meta":
        return candidate.supports.facts(facts) if candidate.supports.facts is not None else None
    return candidate.supports.refusal(device=device, dtype=site_dtype(site), facts=facts)


def inside(decision: Decision, decisions: list[Decision]) -> list[Decision]:
    """The decisions at sites that this one's site computes, but for those that another one covers already."""
    outer = decision.site
    insides = [join(outer.path, name) for name in outer.proposal.inner]
    return [
        d
        for d in decisions
        if d is not decision
        and d.inside is None
        and any(d.site.path == p or d.site.path.startswith(f"{p}.") for p in insides)
    ]


def cover(decision: Decision, decisions: list[Decision]) -> None:
    """Marks the sites inside an applied one: their candidates run inside it, or it shadows them."""
    site = decision.site
    for other in inside(decision, decisions):
        assert decision.candidate is not None
        if other.candidate is not None and other.state == "applied":
            here = other.site.task.name in decision.placed
            other.inside = decision
            if other.carries and not here:
                other.state, other.candidate = "unmatched", None
                other.reason = f"computed by {site.task.name} at {site.path or '(model)'}"
            elif not here:
                other.state = "shadowed"
                other.reason = f"by {decision.candidate.label} of {site.task.name} at {site.path or '(model)'}"
            else:
                other.reason = f"inside {site.path or '(model)'}"
        elif other.state == "unmatched":
            other.inside = decision
            other.reason = f"computed by {site.task.name} at {site.path or '(model)'}"
