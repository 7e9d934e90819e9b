"""One candidate on every case of its task: judged, watched, timed against the baselines, scored."""

from __future__ import annotations

import contextlib
import gc
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.baselines.baselines import baselines_for
from fastkernels.evaluation.bench.contestants import Contestants
from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.inputs import DEVICE_FAILS, not_benchable
from fastkernels.evaluation.bench.judged import Judged, judged
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.pool import Options, Pool
from fastkernels.evaluation.bench.reasons import status_of
from fastkernels.evaluation.bench.replies import HACKS, RunnerFailed
from fastkernels.evaluation.bench.result import CaseResult, Failure, Mode
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.scored import CANDIDATE, below_roofline, clocks_differ, scored
from fastkernels.evaluation.bench.site import Memory, Site
from fastkernels.evaluation.bench.source import Source
from fastkernels.evaluation.bench.timed import Bed
from fastkernels.evaluation.bench.times import Contest
from fastkernels.evaluation.bench.watched import watched
from fastkernels.tasks import get_task
from fastkernels.tasks.task import Case, Task
from fastkernels.tasks.tensors import tensors


def offered(task: Task, options: Options, captured: Iterable[Case] | None = None) -> list[Case]:
    """The cases of which the options choose by name: the captured ones, or those of the task, small or large."""
    return list(captured) if captured is not None else [c for c in task.cases() if c.production == options.production]


def bench_task(
    source: Source,
    server: ForkServer,
    memory: Memory,
    options: Options,
    captured: Iterable[Case] | None = None,
    *,
    on_case: Callable[[CaseResult], None] = lambda _: None,
) -> list[CaseResult]:
    """Every case of the candidate's task, or the captured ones, in every dtype. A failure is a result.

    ``on_case`` is told of each when it ends; that no case launched what the candidate brings is only known at the last.
    """
    task = get_task(source.task)
    chosen = [c for c in offered(task, options, captured) if options.cases is None or c.name in options.cases]
    with contextlib.ExitStack() as stack:
        pool = Pool(source, task, server, options, stack)
        found = []
        for dtype, case in itertools.product(options.dtypes, chosen):
            found.append(_Case(pool, memory, case, dtype, captured=captured is not None).run())
            on_case(found[-1])
        if not pool.brings or pool.launched:
            return found
    detail = f"no case launched any of {', '.join(sorted(pool.brings))}"
    return [_failed(c, Failure(code="NO_LAUNCH", where="all cases", detail=detail)) for c in found]


@dataclass(kw_only=True)
class _State:
    """What is known of a case so far."""

    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    kernel_seconds: float | None = None  # of one observed call
    seconds: dict[str, float] = field(default_factory=dict)


class _Case:
    """One case in one dtype."""

    def __init__(self, pool: Pool, memory: Memory, case: Case, dtype: torch.dtype, *, captured: bool) -> None:
        self.pool, self.memory, self.case, self.dtype = pool, memory, case, dtype
        self.task, self.options = pool.task, pool.options
        self.state = _State()
        self.source = pool.source  # of what is judged and timed: in a self-test, the best baseline
        self.suspect: Runner
        self.captured = captured

    def run(self) -> CaseResult:
        """The whole of it. The candidate's file is imported before a seed is drawn."""
        reason = not_benchable(self.task, self.case)
        if reason is not None:
            return self._result(Failure(code="SKIPPED", where="", detail=reason))
        try:
            self._run()
        except RunnerFailed as error:
            self._fail(error.code, "", error.detail)
        except (*DEVICE_FAILS, EvaluationError) as error:  # of this process: the next case may fit
            detail = f"the case could not be judged to its end: {type(error).__name__}: {error}"
            self._fail("SKIPPED", "the bench", detail[:400])
        finally:
            self._free()
        if any(f.code in HACKS for f in self.state.failures):
            self.pool.hopeless.clear()  # it may have been the candidate that ended them
        return self._result()

    def _run(self) -> None:
        loaded = None if self.options.self_test else self.pool.runner(self.source, "candidate")
        site = Site(self.task, self.case, self.dtype, self.memory, secrets.randbits(62))
        self._describe(site)
        contestants = Contestants(self.pool, site, list(self._baselines()), self.state.notes)
        if loaded is None:
            chosen = contestants.best()
            if chosen is None:
                self._fail("SKIPPED", "", "no baseline runs here")
                return
            self.source = chosen
            self.state.fields["best_baseline"] = chosen.name
        self.suspect = loaded or self.pool.runner(self.source, "candidate")
        try:
            inside = site.lend(self.suspect)
            if inside:
                self.state.notes.append(f"with the candidates for {', '.join(inside)} inside")
            # A compiled baseline is compiled for each shape: it is not what a self-test is to judge.
            with self._clocked("judged"):
                found = judged(self.suspect, site, secrets.randbits(62), hidden=not self.source.compiled)
            self._judged(found)
            self._tampered()
            self.suspect.stop()
            if not self.state.failures:
                with self._clocked("watched"):
                    self._watched(site)
            if not self.state.failures and found.draws:
                try:
                    self._timed(site, contestants, found)
                except RunnerFailed as error:  # what it did to others is still to be asked
                    self._fail(error.code, "timed calls", error.detail)
            self._tampered()
        finally:
            self.suspect.stop()

    def _tampered(self) -> None:
        known = {f.detail for f in self.state.failures}
        for line in self.suspect.tampered() if self.suspect.alive and not self.options.self_test else []:
            if line not in known:
                self._fail("TAMPERED", "the process", line)
        for line in self.pool.disturbed():
            self._fail("TAMPERED", "the system", line)

    def _watched(self, site: Site) -> None:
        """In processes of their own: what was under a profiler is not timed."""
        observer = self.pool.runner(self.source, "watched")
        ghost = self.pool.runner(self.source, "ghost") if not self.options.self_test else None
        found = watched(observer, ghost, site, secrets.randbits(62))
        if found is None:
            return
        self.state.failures += found.failures
        self.state.fields |= {"delegates": found.observed.delegates, "kernels": list(found.observed.kernels)}
        self.state.kernel_seconds = found.observed.kernel_seconds
        self.pool.brings |= set(found.observed.brings)
        self.pool.launched |= set(found.observed.own)

    def _baselines(self) -> Iterator[Source]:
        if self.task.name in self.options.baselines:
            yield from self.options.baselines[self.task.name]
            return
        for spec in baselines_for(self.task, self.options.device, self.dtype, dict(self.case.init)):
            if not spec.compiled or "compiled" in self.options.modes or self.options.device.type == "cuda":
                yield Source.of_spec(spec, self.task)

    def _timed(self, site: Site, contestants: Contestants, found: Judged) -> None:
        with self._clocked("baselines"):
            there = contestants.runners()
        if not there:
            self.state.notes.append("no baseline runs here")
            return
        if not any(t.numel() for t in tensors(site.referee.draw(0))):
            self.state.notes.append("empty: judged, not timed")
            self.state.fields["score"] = 1.0
            return
        contests: dict[Mode, Contest] = {}
        for mode in self.options.modes:
            try:
                with self._clocked(mode):
                    contest = self._contest(site, contestants, found, mode)
            except RunnerFailed as error:
                if mode == "eager" or error.code in HACKS or not self.suspect.alive:
                    raise
                self.state.notes.append(f"{mode}: {error.brief}")
                continue
            if contest is not None:
                contests[mode] = contest
                self.state.failures += contest.failures
            self._tampered()
            if self.state.failures:
                break
        found_fields = scored(contests, self.state.fields)
        self.state.notes += found_fields.pop("notes", [])
        self.state.fields |= found_fields
        self.state.failures += clocks_differ(self.state.fields, self.state.kernel_seconds)
        self.state.failures += below_roofline(site, self.state.fields)

    def _contest(self, site: Site, contestants: Contestants, found: Judged, mode: Mode) -> Contest | None:
        """The times of all that take ``mode``; None where the candidate does not, or nobody else."""
        others = contestants.runners()
        if not self.suspect.alive:  # it was ended after a mode that it did not take, or to make room
            self.suspect = contestants.lend(self.source, "candidate")
        if mode == "compiled":  # which takes seconds each: the compiled reference stands for all, where there is one
            others = {s.name: others[s.name] for s in contestants.sources if s.compiled and s.name in others} or others
        runners = {**others, CANDIDATE: self.suspect}
        bed = Bed(site, runners, suspect=CANDIDATE, judged=found, mode=mode, disturbed=self.pool.disturbed)
        try:
            estimates = bed.estimates()
            if mode == "eager":
                costs = [self.task.cost(site.reference, *unpack(a)) for a in bed.ring.some()]
                self.state.fields |= {"bytes": min(c.bytes for c in costs), "flops": min(c.flops for c in costs)}
            if CANDIDATE not in bed.runners or len(bed.runners) < 2:
                return None
            return bed.contest(estimates, self.options.rounds)
        finally:
            self.state.notes += bed.notes
            for name, runner in runners.items():
                if name not in bed.runners:
                    runner.close()  # a capture that failed leaves its process in no known state

    def _judged(self, found: Judged) -> None:
        self.state.failures += found.failures
        if found.worst is not None:
            self.state.fields |= {
                "error": found.worst.error.l2,
                "limit": found.worst.limit.l2,
                "max_abs_error": found.worst.max_abs_error,
                "max_rel_error": found.worst.max_rel_error,
                "matched_ratio": found.worst.matched_ratio,
            }
        if not found.draws:
            self._fail("SKIPPED", "", "the reference takes none of its own inputs here")

    def _describe(self, site: Site) -> None:
        arguments = site.referee.draw(0)
        cost = self.task.cost(site.reference, *unpack(arguments))
        shapes = [tuple(t.shape) for t in tensors(arguments)]
        self.state.fields |= {
            "shapes": " ".join("x".join(map(str, s)) or "scalar" for s in shapes),
            "bytes": cost.bytes,
            "flops": cost.flops,
        }

    def _free(self) -> None:
        """Gives back what the references of this case took: the next may be larger."""
        if self.options.device.type == "cuda":
            gc.collect()
            with contextlib.suppress(RuntimeError):  # a device that has failed is told case by case
                torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _clocked(self, phase: str) -> Iterator[None]:
        """Notes down how long it takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.state.seconds[phase] = round(time.monotonic() - start, 2)

    def _fail(self, code: str, where: str, detail: str) -> None:
        self.state.failures.append(Failure(code=code, where=where, detail=detail))

    def _result(self, *failures: Failure) -> CaseResult:
        found = [*self.state.failures, *failures]
        status = status_of(f.code for f in found)
        fields = self.state.fields | ({"score": 0.0} if status != "PASSED" else {})
        return CaseResult(
            task=self.task.name,
            level=self.task.level,
            case=self.case.name,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.options.device),
            candidate=self.pool.source.name,
            source="captured" if self.captured else "synthetic",
            status=status,
            gate=status == "PASSED",
            failures=found,
            notes=self.state.notes,
            seconds=self.state.seconds,
            **fields,
        )


def _failed(result: CaseResult, failure: Failure) -> CaseResult:
    """The result with one failure more; what was skipped stays so."""
    if result.status == "SKIPPED":
        return result
    failures = [*result.failures, failure]
    status = status_of(f.code for f in failures)
    return result.model_copy(update={"failures": failures, "status": status, "gate": False, "score": 0.0})
