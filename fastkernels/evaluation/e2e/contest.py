"""What the phases of one entry's evaluation share: the job, its journal, and the arms while they run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.arm import Arm, ArmFailed
from fastkernels.evaluation.e2e.engines.environment import reports_in
from fastkernels.evaluation.e2e.engines.proof import why_refused
from fastkernels.evaluation.e2e.engines.weights import model_of
from fastkernels.evaluation.e2e.families.family import Family, Mode, Tensors
from fastkernels.evaluation.e2e.job import JobSpec
from fastkernels.evaluation.e2e.journal import Ended, Journal
from fastkernels.evaluation.e2e.result import ARMS, ArmName, ArmResult
from fastkernels.evaluation.e2e.setup import Role, Setup
from fastkernels.evaluation.e2e.workload import Workload

LOAD_SECONDS, COMPILE_SECONDS, ANSWER_SECONDS, SETTLE_SECONDS = 1200.0, 1800.0, 1800.0, 120.0  # past them an arm hangs


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an entry is: ``done`` of ``total`` blocks, or one of one while something else is at work."""

    phase: str
    done: int = 0
    total: int = 1


@dataclass(kw_only=True)
class Contest:
    """The three arms of one entry, and what is known so far."""

    spec: JobSpec
    folder: Path
    family: Family
    workloads: tuple[Workload, ...]
    journal: Journal
    on_progress: Callable[[Progress], None]
    arms: dict[ArmName, Arm] = field(default_factory=dict)
    loaded: dict[ArmName, dict[str, Any]] = field(default_factory=dict)
    warmup_seconds: dict[ArmName, float] = field(default_factory=dict)
    broken: dict[tuple[ArmName, str], ArmFailed] = field(default_factory=dict)  # modes in which an arm does not run
    kept: set[tuple[str, int, int]] = field(default_factory=set)  # timed blocks of this try whose outputs were written
    answers: dict[str, Tensors] = field(default_factory=dict)  # oracle, control, and the baseline's by mode

    def __post_init__(self) -> None:
        self.files = self.folder / "answers"
        self.files.mkdir(exist_ok=True)
        self.by_name = {w.name: w for w in self.workloads}
        self.modes: tuple[Mode, ...] = self.spec.entry.modes_on(self.spec.device.partition(":")[0])

    def tell(self, phase: str, done: int = 0, total: int = 1) -> None:
        """To whoever watches."""
        self.on_progress(Progress(phase=phase, done=done, total=total))

    def start(self, role: Role, standing: tuple[tuple[str, str], ...] = ()) -> Arm:
        """A process for an arm; ``standing`` are the sites of the null arm."""
        spec = self.spec
        setup = Setup(
            role=role,
            entry=spec.entry,
            device=spec.device,
            threads=spec.threads,
            candidates=spec.source(self.folder),
            select=spec.select,
            lowering=spec.lowering,
            verify=spec.verify,
            standing=standing,
            model=model_of(spec.entry, self.folder) if spec.entry.engine != "hf" else "",
        )
        return Arm(setup, self.folder)

    def load(self, stack: contextlib.ExitStack) -> None:
        """Baseline and candidate at the same time; then the null arm, at the candidate's sites."""
        self.tell("load and patch")
        first: tuple[ArmName, ...] = ("baseline", "candidate")
        for name in first:
            self.arms[name] = stack.enter_context(self.start(name))
            self.arms[name].send("load")
        for name in first:
            self.loaded[name] = self.arms[name].reply(timeout=LOAD_SECONDS)
        standing = tuple((p, t) for p, t in self.loaded["candidate"]["standing"])
        self.arms["null"] = stack.enter_context(self.start("null", standing))
        self.loaded["null"] = self.arms["null"].order("load", timeout=LOAD_SECONDS)

    def warm(self) -> None:
        """Every arm in every mode, side by side: compilers are bound by the CPU. A continued run warms what was chosen.

        Where the candidate cannot run in a mode, the gate will say so; where the others cannot, the trial.
        """
        tried = {name: self.journal.tried(name) for name in ARMS}
        modes: dict[ArmName, tuple[str, ...]] = {
            n: (t.mode,) if t is not None else self.modes for n, t in tried.items()
        }
        for mode in self.modes:
            self.tell(f"warm up, {mode}")
            at_work = [name for name in ARMS if mode in modes[name]]
            for name in at_work:
                self.arms[name].send("warm", mode=mode, workloads=[as_json(w) for w in self.workloads])
            for name in at_work:
                try:
                    told = self.arms[name].reply(timeout=COMPILE_SECONDS)
                except ArmFailed as failure:
                    if not failure.alive:
                        raise
                    self.broken[name, mode] = failure
                else:
                    self.warmup_seconds[name] = self.warmup_seconds.get(name, 0.0) + told["seconds"]

    @contextlib.contextmanager
    def alone(self, name: ArmName) -> Iterator[Arm]:
        """An arm while the others stand still: nothing of theirs takes its cores, or starts work on its device."""
        others = [arm for other, arm in self.arms.items() if other != name]
        for arm in others:
            arm.signal(signal.SIGSTOP)
        try:
            yield self.arms[name]
        finally:
            for arm in others:
                arm.signal(signal.SIGCONT)

    def mode(self, name: ArmName) -> str:
        """The way in which an arm runs.

        Raises:
            EvaluationError: none was chosen yet.
        """
        tried = self.journal.tried(name)
        if tried is None:
            raise EvaluationError(f"{self.journal.file}: no way was chosen for the {name} arm. Evaluate anew.")
        return tried.mode

    def record_failure(self, failure: ArmFailed) -> str:
        """A candidate that failed is recorded, so that a continued run does not try it again; the others, which run no
        code but ours and the host's, are tried again. Returns the reason that no record holds."""
        if failure.role != "candidate":
            return str(failure)
        result = ArmResult(
            state="failed",
            reason=(failure.reason + self._left_by_workers(failure))[:2000],
            log=f"{failure.role}.log",
            log_tail=failure.tail,
            patch=self.loaded.get(failure.role, {}).get("patch"),
        )
        self.journal.append(Ended(arm=failure.role, result=result))
        return ""

    def _left_by_workers(self, failure: ArmFailed) -> str:
        """An engine that does not start says why in processes of its own, and may end its arm with them."""
        if self.spec.entry.engine == "hf" or failure.role in self.loaded:
            return ""
        left = why_refused(reports_in(self.folder, failure.role), self.folder / f"{failure.role}.log")
        return f": {left}" if left and left not in failure.reason else ""


def as_json(model: Any) -> dict[str, Any]:
    """A pydantic model as what goes through a pipe."""
    return model.model_dump(mode="json")
