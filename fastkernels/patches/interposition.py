"""Proof that candidates ran: counters, their kernels and operators in a profiler window, and nodes of compiled graphs.

Counters see eager calls only; a compiled graph calls operators, and a CUDA-graph replay runs kernels and no Python."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import BaseModel, Field
from torch.autograd import _profiler_enabled
from torch.profiler import ProfilerActivity, profile

from fastkernels.errors import PatchError
from fastkernels.patches.dispatch import Dispatcher
from fastkernels.patches.kernel_names import KernelNames, kernel_names
from fastkernels.patches.report import CandidateReport, State
from fastkernels.patches.seen import Seen
from fastkernels.runtime.graph_notes import graph_notes

if TYPE_CHECKING:
    from fastkernels.patches.patch import Patch

How = Literal["counter", "kernel", "op", "graph"]
NOTHING = "no call was counted, and no kernel or operator of its own was seen"


class Evidence(BaseModel):
    """What showed in the window of one candidate."""

    candidate: str = Field(description="file or class of the candidate")
    state: State = Field(description="the candidate's state in the patch's report")
    sites: list[str] = Field(default_factory=list, description="paths of the modules that it is applied at")
    calls: int = Field(default=0, description="calls that the counters saw in the window")
    kernels: dict[str, int] = Field(default_factory=dict, description="its kernels, with launches in the window")
    ops: dict[str, int] = Field(default_factory=dict, description="its operators, with calls in the window")
    in_graph: dict[str, int] = Field(default_factory=dict, description="its nodes in the graphs compiled so far")
    bypassed: dict[str, int] = Field(default_factory=dict, description="calls that ran the original, by reason")
    proven: bool = False
    how: How | None = Field(default=None, description="the first of counter, kernel, op, graph that proves it")
    through: str = Field(default="", description="task that showed in its place: it stands inside this one only")
    why_not: str = ""


class Interposition(BaseModel):
    """What a window showed in this process, by task. Kernels and operators are known by name: those of a second model
    in the process that is patched with the same candidates count too."""

    model: str
    pid: int
    rank: int | None = Field(default=None, description="rank in torch.distributed's default group, if there is one")
    tasks: dict[str, Evidence]

    @property
    def unproven(self) -> list[str]:
        """Tasks whose candidate is applied, as the report says, and did not show in the window."""
        return [task for task, seen in self.tasks.items() if seen.state == "applied" and not seen.proven]

    def require(self) -> None:
        """Raises PatchError unless every applied candidate is proven."""
        unproven = [(task, self.tasks[task]) for task in self.unproven]
        if unproven:
            missing = [f"{_where(seen)}: candidate {seen.candidate} for {t}: {seen.why_not}" for t, seen in unproven]
            rank = "" if self.rank is None else f"rank {self.rank}, "
            raise PatchError(
                f"{self.model} ({rank}process {self.pid}): {len(missing)} applied candidates did not show in the "
                "window; each must, by its counter, a kernel or operator of its own, or a node of a graph that ran. "
                "Call the patched model inside observe(), as it is called in production; leave out with select=, or "
                "of the candidates, what is not meant to run.\n  " + "\n  ".join(missing)
            )


def _where(seen: Evidence) -> str:
    if not seen.sites:
        return "inside other implementations"
    return (seen.sites[0] or "(model)") + (f" and {len(seen.sites) - 1} more" if len(seen.sites) > 1 else "")


class Window:
    """A profiler window; ``result`` is there once it has ended."""

    def __init__(self, patch: Patch) -> None:
        self._patch = patch
        self._result: Interposition | None = None

    @property
    def result(self) -> Interposition:
        """Raises PatchError before the window's end."""
        if self._result is None:
            raise PatchError("observe(): no result yet; read it after the end of the with block.")
        return self._result

    def __enter__(self) -> Self:
        if _profiler_enabled():
            raise PatchError("observe(): a profiler is running already, and torch has one at a time. End it first.")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()  # kernels launched before do not belong to the window
        self._before = _State.of(self._patch)
        self._profile = profile(activities=activities)
        self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.stop()  # waits for the device
        if kind is None:
            self._result = _judge(self._patch, self._before, Seen.of(self._profile.events() or ()))
        del self._profile


# -- what the patch knows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _State:
    """Counters and names of a patch at one moment."""

    calls: Mapping[str, int]
    bypassed: Mapping[str, Counter[str]]
    ops: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, patch: Patch) -> Self:
        counts = patch._installer.counts
        tasks = list(patch._candidates.by_task)
        bypassed: dict[str, Counter[str]] = {task: Counter() for task in tasks}
        ops: dict[str, set[str]] = {task: set() for task in tasks}
        for dispatcher in _standing(patch):
            places = _places(dispatcher)
            for task in set(places.values()) & set(tasks):
                bypassed[task].update(dispatcher.bypassed)
            for key, lowered in dispatcher.binding.lowered.items():
                task = places.get(key) or places.get(key.rpartition(".")[0], "")  # keyed by path, or path and method
                if lowered.op is not None and task in ops:
                    ops[task].update(op.name() for op in lowered.op.ops.values())
        return cls(
            calls={task: counts.calls_of(task) for task in tasks},
            bypassed=bypassed,
            ops={task: frozenset(names) for task, names in ops.items()},
        )


def _standing(patch: Patch) -> Iterator[Dispatcher]:
    counts = patch._installer.counts
    yield from (*counts.outermost.values(), *counts.beneath.values())


def _places(dispatcher: Dispatcher) -> dict[str, str]:
    """Tasks by their place in an implementation; the whole of it is at ``""``."""
    return {"": dispatcher.proposal.task} | {
        path: candidate.task.name for path, candidate in dispatcher.implementation.__dict__["placed"]
    }


# -- the judgement ---------------------------------------------------------------------------------------------------


def _judge(patch: Patch, before: _State, seen: Seen) -> Interposition:
    after, report = _State.of(patch), patch.report
    states = {c.task: c for c in report.candidates if c.task in after.calls}
    owned = {task: kernel_names(patch._candidates.by_task[task].cls) for task in states}
    tasks = {
        task: _evidence(task, state, before, after, seen, owned[task], _others(task, states, owned))
        for task, state in states.items()
    }
    for site in report.applied:
        if site.task in tasks:
            tasks[site.task].sites.append(site.path)
    _judge_what_stands_inside(patch, tasks)
    distributed = torch.distributed
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else None
    return Interposition(model=report.model, pid=os.getpid(), rank=rank, tasks=tasks)


def _others(
    task: str, states: Mapping[str, CandidateReport], owned: Mapping[str, KernelNames]
) -> dict[str, KernelNames]:
    """Kernels of the other candidates that may have run, by label: one that is applied nowhere does not."""
    return {c.label: owned[t] for t, c in states.items() if t != task and c.state == "applied"}


def _evidence(
    task: str,
    reported: CandidateReport,
    before: _State,
    after: _State,
    seen: Seen,
    owned: KernelNames,
    others: Mapping[str, KernelNames],
) -> Evidence:
    names = before.ops[task] | after.ops[task]
    kernels = {name: n for name, n in seen.device.items() if name in owned}
    shared = {k: s for k in kernels if (s := [label for label, theirs in others.items() if k in theirs])}
    noted = [(n.region in seen.regions, _own(n.names, names, owned)) for n in graph_notes()]
    found = Evidence(
        candidate=reported.label,
        state=reported.state,
        calls=after.calls[task] - before.calls[task],
        kernels=kernels,
        ops={name: n for name, n in seen.ops.items() if name in names},
        in_graph=dict(sum((own for _, own in noted), Counter())),
        bypassed=dict(after.bypassed[task] - before.bypassed[task]),
    )
    ran = {name for region_ran, own in noted if region_ran for name in own}
    if reported.state != "applied":
        found.why_not = f"{reported.state}: {reported.reason}" if reported.reason else reported.state
        return found
    shown: dict[How, bool] = {
        "counter": found.calls > 0,
        "kernel": bool(kernels.keys() - shared.keys()),
        "op": bool(found.ops),
        "graph": any(not any(name in theirs for theirs in others.values()) for name in ran),
    }
    found.how = next((how for how, shows in shown.items() if shows), None)
    found.proven = found.how is not None
    if not found.proven:
        reasons = [f"{n} calls ran the original: {why}" for why, n in found.bypassed.items()]
        reasons += [f"kernel {k} ran, shared with {', '.join(labels)}" for k, labels in shared.items()]
        if found.in_graph and not ran:
            reasons.append("the compiled graphs that hold it did not run")
        elif seen.regions:
            reasons.append(
                "compiled graphs ran that show no name of its own; lowering='opaque' gives it one where it is inlined"
            )
        found.why_not = "; ".join(reasons) or NOTHING
    return found


def _own(names: Mapping[str, int], ops: frozenset[str], kernels: KernelNames) -> Counter[str]:
    return Counter({name: n for name, n in names.items() if name in ops or name in kernels.triton})


def _judge_what_stands_inside(patch: Patch, tasks: Mapping[str, Evidence]) -> None:
    """What stands inside one candidate only shows that this one ran too. And an outer kernel may do the work of a
    candidate inside it, which then has nothing to show."""
    holders: dict[str, set[str]] = {}
    for dispatcher in _standing(patch):
        places = _places(dispatcher)
        for place, task in places.items():
            outer = next((places[p] for p in _ancestors(place) if p in places), "")
            holders.setdefault(task, set()).add(outer)
    pending = [task for task, found in tasks.items() if found.proven]
    for name in pending:  # grows
        around = holders.get(name, set())
        whole = tasks.get(next(iter(around))) if len(around) == 1 else None
        if whole is not None and not whole.proven:
            whole.proven, whole.how, whole.through, whole.why_not = True, tasks[name].how, name, ""
            pending += around
    for task, found in tasks.items():
        ran = [h for h in sorted(holders.get(task, ())) if h in tasks and tasks[h].proven]
        if found.why_not == NOTHING and ran:
            found.why_not = f"{NOTHING}; the candidate for {', '.join(ran)}, in which it stands, ran without it"


def _ancestors(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
