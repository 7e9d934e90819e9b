"""The processes for one task: the candidate's and each baseline's, started once and again where one has died."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import torch

from fastkernels.evaluation.bench import process
from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.result import Mode
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.source import Source
from fastkernels.tasks import Task

# "candidate" and "baseline" are timed. "watched" runs under a profiler, which leaves its mark on a process for good,
# and "ghost" without the candidate's kernels: neither is ever timed.
Role = Literal["candidate", "baseline", "watched", "ghost"]
BASELINE_SECONDS = 300.0  # that an order to a baseline may take at least: libraries build kernels at their first call
SLOW_SECONDS = 5.0  # a baseline that fails after so long is not tried again for each case
HOPELESS = frozenset({"IMPORT_ERROR", "TIMEOUT", "CRASH"})
STARTED_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run asks for, the same for all candidates."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    rounds: int = 8
    production: bool = False
    cases: frozenset[str] | None = None
    timeout: float = 60.0
    self_test: bool = False
    modes: tuple[Mode, ...] = ("eager",)
    baselines: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)  # by task, instead of all that are known


class Pool:
    """The processes for one task: the candidate's and each baseline's, started once, again where one has died.

    Compilers' caches (Triton's, Inductor's) are new folders, the candidate's apart from the baselines': no binary of an
    earlier run is used, and no candidate can slow a baseline down through one. Extensions built by
    ``torch.utils.cpp_extension`` stay where torch keeps them: they are named by their sources and take minutes.
    """

    def __init__(
        self, source: Source, task: Task, server: ForkServer, options: Options, stack: contextlib.ExitStack
    ) -> None:
        self.source, self.task, self.options = source, task, options
        self._server = server
        self._forked_so_far: list[Runner] = []
        self._running: dict[tuple[str, Role], Runner] = {}
        self._trusted_pids: set[int] = set()  # those that have ended too
        self._caches = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="fastkernels-", ignore_cleanup_errors=True)
        )
        stack.callback(self.close)
        self.brings: set[str] = set()
        self.launched: set[str] = set()
        self.hopeless: dict[str, str] = {}

    def close(self) -> None:
        """Ends all processes: a GPU's take a while to go, all at the same time."""
        for runner in self._forked_so_far:
            runner.kill()
        for runner in self._forked_so_far:
            runner.close()

    def runner(self, source: Source, role: Role) -> Runner:
        """A loaded child for ``source``.

        Raises:
            RunnerFailed: IMPORT_ERROR, or its process ends while it is imported.
        """
        found = self._running.get((source.name, role))
        if found is None or not found.alive:
            found = self._forked(source, role)
            found.load()
            self._running[source.name, role] = found
        return found

    def start(self, sources: Iterable[Source]) -> None:
        """Starts the baselines that do not run yet, at the same time; one that crashed is tried again when needed."""
        missing = [
            s for s in sources
            if s.name not in self.hopeless
            and ((found := self._running.get((s.name, "baseline"))) is None or not found.alive)
        ]  # fmt: skip
        forked = [(s, self._forked(s, "baseline")) for s in missing]

        def load(source: Source, runner: Runner) -> None:
            began = time.monotonic()
            try:
                runner.load()
            except RunnerFailed as error:
                runner.close()
                if error.code != "CRASH":
                    self.failed(source, error, began)
            else:
                self._running[source.name, "baseline"] = runner
                runner.stop()

        with ThreadPoolExecutor(STARTED_AT_ONCE) as threads:
            for done in [threads.submit(load, s, r) for s, r in forked]:
                done.result()

    def end_candidate(self) -> None:
        """Ends the candidate's process; the next ``runner`` has another."""
        found = self._running.pop((self.source.name, "candidate"), None)
        if found is not None:
            found.close()
            process.ended(found.pid)

    def failed(self, source: Source, error: RunnerFailed, began: float) -> None:
        """Notes a baseline's failure; ``began`` is of ``time.monotonic``. The hopeless are not tried again."""
        if error.code in HOPELESS or time.monotonic() - began > SLOW_SECONDS:
            self.hopeless[source.name] = error.brief

    def disturbed(self) -> list[str]:
        """What the candidate did to the processes beside it, and started: the system says so, not its process."""
        return [*self.outside(), *(f"left {name} behind" for name in self.strays())]

    def outside(self) -> list[str]:
        """What was changed about the processes from outside them; those are not used again.

        What a baseline starts is its own affair: only the candidate's processes may have none beside them.
        """
        found = []
        for (_, role), runner in self._running.items():
            changed = runner.outside(alone=not self._trusted(role)) if runner.alive else []
            found += changed
            if changed:
                runner.close()
        return found

    def strays(self) -> list[str]:
        """Ends processes that got away from their child; their names, unless they are a baseline's."""
        return self._server.strays(self._trusted_pids)

    def _trusted(self, role: Role) -> bool:
        return role == "baseline" or self.options.self_test

    def _forked(self, source: Source, role: Role) -> Runner:
        timeout, caches = self.options.timeout, self._caches
        if self._trusted(role):
            timeout, caches = max(timeout, BASELINE_SECONDS), self._server.caches
        runner = Runner(self._server, source, device=self.options.device, timeout=timeout, caches=caches)
        self._forked_so_far.append(runner)
        if self._trusted(role):
            self._trusted_pids.add(runner.pid)
        return runner
