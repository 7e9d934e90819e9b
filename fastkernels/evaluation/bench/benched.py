"""One candidate on every case of its task: judged, watched, timed against the baselines, scored."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from fastkernels.evaluation.bench.baselines.baselines import baselines_for
from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.inputs import not_benchable
from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.judged import Judged, judged
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.pool import Options, Pool
from fastkernels.evaluation.bench.reasons import status_of
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.result import CaseResult, Failure, Mode
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.scored import CANDIDATE, below_roofline, clocks_differ, scored
from fastkernels.evaluation.bench.site import Memory, Site
from fastkernels.evaluation.bench.source import Source
from fastkernels.evaluation.bench.timed import Bed, Contest
from fastkernels.evaluation.bench.watched import watched
from fastkernels.tasks import get_task
from fastkernels.tasks.task import Case
from fastkernels.tasks.tensors import tensors


def bench_task(
    source: Source, server: ForkServer, memory: Memory, options: Options, captured: Iterable[Case] | None = None
) -> list[CaseResult]:
    """Every case of the candidate's task, or the captured ones, in every dtype. A failure is a result."""
    task = get_task(source.task)
    given = list(captured) if captured is not None else [c for c in task.cases() if c.production == options.production]
    chosen = [c for c in given if options.cases is None or c.name in options.cases]
    with contextlib.ExitStack() as stack:
        pool = Pool(source, task, server, options, stack)
        found = [
            _Case(pool, memory, case, dtype, captured=captured is not None).run()
            for dtype in options.dtypes
            for case in chosen
        ]
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


class _Case:
    """One case in one dtype."""

    def __init__(self, pool: Pool, memory: Memory, case: Case, dtype: torch.dtype, *, captured: bool) -> None:
        self.pool, self.memory, self.case, self.dtype = pool, memory, case, dtype
        self.task, self.options = pool.task, pool.options
        self.state = _State()
        self.captured = captured

    def run(self) -> CaseResult:
        """The whole of it. The candidate's file is imported before a seed is drawn."""
        reason = not_benchable(self.task, self.case)
        if reason is not None:
            return self._result(Failure(code="SKIPPED", where="", detail=reason))
        try:
            self._run()
        except RunnerFailed as error:
            self.state.failures.append(Failure(code=error.code, where="", detail=error.detail))
        return self._result()

    def _run(self) -> None:
        baselines = list(self._baselines()) if self.options.self_test else []
        suspect = None if self.options.self_test else self.pool.runner(self.pool.source, watch=True)
        site = Site(self.task, self.case, self.dtype, self.memory, secrets.randbits(62))
        self._describe(site)
        if suspect is None:
            chosen = self._best_of(site, baselines)
            suspect = self.pool.runner(chosen, watch=True)
            self.state.fields["best_baseline"] = chosen.name
        with _halted(suspect):
            site.lend(suspect)
            found = judged(suspect, site, secrets.randbits(62))
            self._judged(found)
            self._tampered(suspect)
            if not self.state.failures:
                self._watched(suspect, site)
            self._timed(site, suspect, found, baselines or list(self._baselines()))
            self._tampered(suspect)

    def _tampered(self, suspect: Runner) -> None:
        known = {f.detail for f in self.state.failures}
        for line in suspect.tampered() if suspect.alive and not self.options.self_test else []:
            if line not in known:
                self._fail("TAMPERED", "the process", line)
        for line in [*self.pool.outside(), *(f"left {name} behind" for name in self.pool.strays())]:
            self._fail("TAMPERED", "the system", line)

    def _watched(self, suspect: Runner, site: Site) -> None:
        ghost = self.pool.runner(self.pool.source, watch=False) if not self.options.self_test else None
        found = watched(suspect, ghost, site, secrets.randbits(62))
        if found is None:
            return
        self.state.failures += found.failures
        self.state.fields |= {"delegates": found.observed.delegates, "kernels": list(found.observed.kernels)}
        self.state.kernel_seconds = found.observed.kernel_seconds
        self.pool.brings |= set(found.observed.brings)
        self.pool.launched |= set(found.observed.own)

    def _baselines(self) -> Iterator[Source]:
        for spec in baselines_for(self.task, self.options.device, self.dtype, dict(self.case.init)):
            if not spec.compiled or "compiled" in self.options.modes or self.options.device.type == "cuda":
                yield Source.of_spec(spec, self.task)

    def _lent(self, site: Site, sources: Iterable[Source]) -> dict[str, Runner]:
        """Those baselines that take the site, each in its child."""
        found = {}
        for source in sources:
            for attempt in (1, 2):
                try:
                    found[source.name] = self._lent_one(site, source)
                except RunnerFailed as error:
                    if error.code == "CRASH" and attempt == 1:
                        continue  # by whomever: once more in a new process
                    self.state.notes.append(f"baseline {source.name}: {error.detail.splitlines()[0][:160]}")
                break
        return found

    def _lent_one(self, site: Site, source: Source) -> Runner:
        runner = self.pool.runner(source, watch=False)
        site.lend(runner)
        arguments = site.referee.draw(0)
        expected = site.referee.expect(arguments, name="warm")
        if expected is not None:
            (outputs,) = site.outputs_for(runner, [expected.expected])
            called = runner.call(site.give(runner, arguments), outputs)
            wrong = judge_drawn(expected, called.outputs, None, task=self.task, dtype=self.dtype).failures
            if wrong:
                raise RunnerFailed("WRONG_OUTPUT", f"left out, for it is wrong here: {wrong[0].detail}")
        runner.stop()
        return runner

    def _best_of(self, site: Site, sources: list[Source]) -> Source:
        runners = self._lent(site, sources)
        bed = Bed(site, runners, suspect=None, judged=Judged())
        times = bed.estimates()
        best = min(times, key=times.__getitem__)
        return next(s for s in sources if s.name == best)

    def _timed(self, site: Site, suspect: Runner, found: Judged, sources: list[Source]) -> None:
        if self.state.failures or not found.draws:
            return
        suspect.stop()
        runners = self._lent(site, sources)
        if not runners:
            self.state.notes.append("no baseline runs here")
            return
        if not any(t.numel() for t in tensors(site.referee.draw(0))):
            self.state.notes.append("empty: judged, not timed")
            self.state.fields["score"] = 1.0
            return
        contestants = {**runners, CANDIDATE: suspect}
        contests: dict[Mode, Contest] = {}
        for mode in self.options.modes:
            bed = Bed(site, contestants, suspect=CANDIDATE, judged=found, mode=mode)
            estimates = bed.estimates()
            self.state.notes += bed.notes
            if CANDIDATE in bed.runners and len(bed.runners) > 1:
                contests[mode] = bed.contest(estimates, self.options.rounds)
                self.state.failures += contests[mode].failures
            if mode == "eager":
                costs = [self.task.cost(site.reference, *unpack(a)) for a in bed.ring.some()]
                self.state.fields |= {"bytes": min(c.bytes for c in costs), "flops": min(c.flops for c in costs)}
        found_fields = scored(contests, self.state.fields)
        self.state.notes += found_fields.pop("notes", [])
        self.state.fields |= found_fields
        self.state.failures += clocks_differ(self.state.fields, self.state.kernel_seconds)
        self.state.failures += below_roofline(site, self.state.fields)

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
            **fields,
        )


def _failed(result: CaseResult, failure: Failure) -> CaseResult:
    """The result with one failure more; what was skipped stays so."""
    if result.status == "SKIPPED":
        return result
    failures = [*result.failures, failure]
    status = status_of(f.code for f in failures)
    return result.model_copy(update={"failures": failures, "status": status, "gate": False, "score": 0.0})


@contextlib.contextmanager
def _halted(runner: Runner) -> Iterator[None]:
    """Afterwards the child stands still until it is needed again."""
    try:
        yield
    finally:
        if runner.alive:
            runner.stop()
