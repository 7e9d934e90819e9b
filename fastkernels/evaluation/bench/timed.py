"""How long does a call take? Batches of all contestants in turn, by the parent's clock, on contents nobody has seen.

Only one child runs at a time; the others stand still. What a batch returned is picked from and judged afterwards."""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.batch_calls import batch_calls, most_bytes
from fastkernels.evaluation.bench.bystander import Bystander
from fastkernels.evaluation.bench.checked import Checked
from fastkernels.evaluation.bench.collected import Collected
from fastkernels.evaluation.bench.inputs import Drawn
from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.judged import Judged, unlike_tensors
from fastkernels.evaluation.bench.replies import HACKS, Batch, Called, RunnerFailed, starved
from fastkernels.evaluation.bench.result import Failure, Mode
from fastkernels.evaluation.bench.ring import Ring
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.suspicion import suspicions
from fastkernels.evaluation.bench.times import Contest, Times
from fastkernels.evaluation.bench.trap import Trap
from fastkernels.tasks.tensors import tensors

PICKS = 2  # calls of each batch whose outputs are judged, and the last one
CACHES_FLUSHED = 3  # times the last-level cache that is written before a batch
WARM_CALLS = (1, 16, 16)
EMPTY_BATCHES = 2
TRAP_SHARE = 0.25  # of the rounds, beside those that are scored; which of them, nobody can know
MOST_REPEATS = 2  # of the whole contest, where it was noisy or something is to be confirmed


class Bed:
    """The timed part of one case: contestants by name, of which ``suspect`` is not trusted."""

    def __init__(
        self,
        site: Site,
        runners: Mapping[str, Runner],
        *,
        suspect: str | None,
        judged: Judged,
        mode: Mode = "eager",
        disturbed: Callable[[], list[str]] = list,
    ) -> None:
        self.mode, self.notes = mode, list[str]()
        self.site, self.runners, self.suspect, self.judged = site, dict(runners), suspect, judged
        self._bystander = Bystander(runners[suspect], disturbed) if suspect is not None else None
        self.chance = random.Random(secrets.randbits(64))
        self._generator = torch.Generator(device=site.device).manual_seed(secrets.randbits(62))
        self.may_scribble = not site.task.mutates and not any(judged.sharing)
        self._flush: torch.Tensor | None = None
        self.failures: list[Failure] = []
        self.counter = site.memory.counter()
        self._slot = max(Ring.bytes_of_slot(site), 1)
        few = int(most_bytes(site.device) / self._slot)
        self.ring = Ring(site, max(1, min(max(WARM_CALLS), few)))
        like = self.expected(0, "size")
        if like is None:
            raise EvaluationError(f"{site.task.name} {site.case.name}: the reference does not take its own draw.")
        self.like = like.expected

    def estimates(self) -> dict[str, float]:
        """Seconds of a call of each contestant, roughly; sets up the ring for the contest. A graph's calls are short
        beside what a batch costs without them, of which one sample may be a hiccup.

        Raises:
            RunnerFailed: the suspect fails in a batch; another that does leaves.
        """
        self.bind(self.ring.slots)
        found = {}
        for name in list(self.runners):
            sizes = [min(calls, self.ring.slots) for calls in WARM_CALLS]
            batches = self._tried(name, [*sizes, *([0] * EMPTY_BATCHES if self.mode == "graph" else [])])
            if batches:
                empty = min((b.wall for b in batches if not b.calls), default=0.0)
                seconds = (b.beyond(empty) / b.calls for b in batches[1 : len(sizes)])
                found[name] = max(min(seconds), 1e-7)
        return found

    def contest(self, estimates: Mapping[str, float], rounds: int) -> Contest:
        """A batch of every contestant in each round, in an order of its own; at random also rounds that are not scored
        and in which the suspect's batch is a trap.

        Once more, longer, where that was noisy or speaks against the suspect: that must be seen twice.

        Raises:
            RunnerFailed: a contestant fails in a batch.
            EvaluationError: none of the others takes a batch.
        """
        outputs = sum(t.numel() * t.element_size() for t in tensors(self.like))
        room = max(outputs, self._slot)
        calls = batch_calls(min(estimates.values()), bytes_of_call=room, mode=self.mode, device=self.site.device)
        self.bind(calls)
        if self.suspect is not None and self.suspect not in self.runners:
            return Contest(times={})  # so many calls it does not take in this mode; the notes say why
        for name in list(self.runners):  # warm: allocator, caches
            self._tried(name, [calls])
        trusted = next((n for n in self.runners if n != self.suspect), None)
        if trusted is None:
            raise EvaluationError(f"{self.site.task.name} {self.site.case.name}: no baseline is left. See the notes.")
        trap = self._trap(trusted)
        doubts: list[Failure] = []
        for repeat in range(1 + MOST_REPEATS):
            contest = self._rounds(calls, rounds * (1 + repeat), trusted, trap)
            caught = trap.failures() if trap is not None else []
            found = [] if self.suspect is None else suspicions(self, contest, self.suspect, trusted)
            doubts = found if repeat == 0 else [f for f in found if f.code in {d.code for d in doubts}]
            if self.failures or caught or not (doubts or contest.noisy()):
                break
        contest.failures = self.failures + caught + doubts
        return contest

    def _trap(self, trusted: str) -> Trap | None:
        if self.suspect is None:
            return None
        trap = self.trap(self.suspect)
        if not trap.possible:
            return None
        trap.watch(trusted)
        return trap

    def trap(self, name: str) -> Trap:
        """What finds out whether each call of the contestant does its own work, in this mode."""
        return (Checked if self.mode == "graph" else Trap)(self, name)

    def _tried(self, name: str, sizes: list[int]) -> list[Batch]:
        """Batches of so many calls; a contestant that fails in one leaves, but for the suspect."""
        try:
            return [self.batch(name, calls) for calls in sizes]
        except RunnerFailed as error:
            if name == self.suspect or error.code in HACKS or starved(error):
                raise
            self.notes.append(f"{name} left out of {self.mode} mode: {error.brief}")
            del self.runners[name]
            return []

    def _rounds(self, calls: int, rounds: int, trusted: str, trap: Trap | None) -> Contest:
        contest = Contest(times={name: Times() for name in self.runners})
        while len(contest.empty) < rounds or (trap is not None and trap.wanted):
            self.batch(trusted, min(WARM_CALLS[-1], calls))
            empty = self.batch(trusted, 0).wall
            # A round with a trap is like any other until it has closed: whoever could tell would behave in it.
            over = len(contest.empty) == rounds or (trap is not None and self.chance.random() < TRAP_SHARE)
            trapping = trap if over else None
            for name in self.chance.sample(list(self.runners), len(self.runners)):
                self.batch(name, min(WARM_CALLS[-1], calls))  # all start as warm as each other
                if trapping is not None:
                    trapping.spring() if name == self.suspect else self.batch(name, calls)
                    continue
                collects = contest.times[name] if name in (self.suspect, trusted) else None
                contest.times[name].batches.append(self.batch(name, calls, collects))
            if trapping is None:
                contest.empty.append(empty)
        if self.suspect is not None:
            contest.times[self.suspect].charge(contest.times[trusted])
        return contest

    def bind(self, slots: int) -> None:
        """Gives every contestant the arguments of so many calls; one that the mode does not take leaves."""
        if slots != self.ring.slots:
            self.ring = Ring(self.site, slots)
        lengths = sorted({min(calls, slots) for calls in (*WARM_CALLS, slots)})
        for name, runner in list(self.runners.items()):
            try:
                with self.turn(name):
                    runner.attach("counter", self.counter)
                    runner.attach("inputs", self.ring.arena)
                    runner.bind(self.ring.places, self.mode, lengths=lengths)
            except RunnerFailed as error:
                if error.code in HACKS or (name == self.suspect and (self.mode == "eager" or not runner.alive)):
                    raise
                self.notes.append(f"{name} takes no {self.mode} mode: {error.brief}")
                del self.runners[name]
            runner.stop()

    def batch(self, name: str, calls: int, times: Times | None = None) -> Batch:
        """One batch: contents are written while every child stands still, then the clock runs."""
        runner = self.runners[name]
        self.renew(calls)
        slots = self.order(calls)
        batch = self.timed(name, slots)
        if times is not None:
            start = time.perf_counter()
            self._evict()  # work of this process: it waits for what the child's left on the device
            times.drained.append(time.perf_counter() - start)
        runner.stop()
        if times is not None:
            self._collect(name, slots, times)
            runner.stop()
            if name == self.suspect and self._bystander is not None:
                self._bystander.check()
        return batch

    def timed(self, name: str, slots: Sequence[int], *, paced: bool = False) -> Batch:
        """One batch of the contestant's over contents that are there, as ``Runner.timed``."""
        with self.turn(name):
            return self.runners[name].timed(slots, paced=paced)

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """In which one contestant works. What a baseline does not do is told as its own: not scored, or TAMPERED where
        it was killed, for nobody here does that.

        Raises:
            RunnerFailed: the contestant fails, or the suspect ran in another's turn.
        """
        if name == self.suspect:
            yield
            return
        try:
            with self._bystander.turn(self.runners[name]) if self._bystander else contextlib.nullcontext():
                yield
        except RunnerFailed as error:
            if error.code == "TAMPERED":
                raise
            code = "TAMPERED" if "SIGKILL" in error.detail else "SKIPPED"
            raise RunnerFailed(code, f"while the baseline {name} was timed: {error}") from error

    def order(self, calls: int) -> list[int]:
        """The slots of a batch: all of them, or in a shorter one the first."""
        slots = self.chance.sample(range(calls), calls)
        # Captured calls share a pool: run as they were captured, none overwrites another's output.
        return sorted(slots) if self.mode == "graph" else slots

    def renew(self, calls: int | None = None) -> None:
        """New contents in all slots, or in those of a batch of so many calls, while every child stands still."""
        self.refresh()
        self.ring.renew(first=calls)
        self._evict()

    def refresh(self) -> None:
        """New values in a part of each parameter."""
        self.site.refresh(self._generator)
        self.synchronize()

    def _collect(self, name: str, slots: list[int], times: Times) -> None:
        """All outputs of the batch, after its inputs were made useless; the parent then judges some of them."""
        picks = self._picks(len(slots)) if name == self.suspect else []
        held = [self.ring.contents(slots[p]) for p in picks]
        if self.may_scribble:  # at once: while the reference computes, work could be done that should be by now
            self.ring.scribble()
            self.synchronize()
        drawn = [
            self.site.referee.expect(contents, name=f"timed call {p + 1} of {len(slots)}")
            for p, contents in zip(picks, held, strict=True)
        ]
        collected = self.collected(name, slots)
        times.collect.append(collected.seconds)
        for pick, one in zip(picks, drawn, strict=True):
            self._judge_pick(one, collected.pick(pick))

    def collected(self, name: str, slots: Sequence[int]) -> Collected:
        """The outputs of the contestant's last batch, of the slots in its order, in the parent's memory."""
        runner = self.runners[name]
        with self.turn(name):
            return runner.collect(slots, self.site.outputs_for(runner, [self.like] * len(slots)))

    def _picks(self, calls: int) -> list[int]:
        """Positions in a batch whose outputs are judged: of work that is put off until a later call, the last is not
        done."""
        return [*self.chance.sample(range(calls - 1), min(PICKS, calls - 1)), *([calls - 1] if calls else [])]

    def expected(self, slot: int, name: str) -> Drawn | None:
        """What the reference says of a slot's present contents."""
        return self.site.referee.expect(self.ring.contents(slot), name=name)

    def _judge_pick(self, one: Drawn | None, got: Called) -> None:
        if one is None:
            return
        found = judge_drawn(one, got.outputs, None, task=self.site.task, dtype=self.site.dtype).failures
        found = found + unlike_tensors(got, self.judged.sharing, one.name)
        self.failures += [Failure(code="TIMED_WRONG", where=f.where, detail=f.detail) for f in found[:1]]

    def _evict(self) -> None:
        """On CUDA the caches hold none of the new contents when the clock starts."""
        if self.site.device.type == "cuda":
            from fastkernels.evaluation.bench.roofline import cache_bytes

            if self._flush is None:
                count = CACHES_FLUSHED * cache_bytes(self.site.device)
                self._flush = torch.empty(count, dtype=torch.uint8, device=self.site.device)
            self._flush.zero_()
        self.synchronize()

    def synchronize(self) -> None:
        """Waits for what this process asked of the device."""
        if self.site.device.type == "cuda":
            torch.cuda.synchronize(self.site.device)
