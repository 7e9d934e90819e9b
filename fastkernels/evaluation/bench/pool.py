"""The processes for one task: the candidate's and each baseline's, started once and again where one has died."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.result import Mode
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.source import Source
from fastkernels.tasks import Task


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


class Pool:
    """The processes for one task: the candidate's and each baseline's, started once, again where one has died."""

    def __init__(
        self, source: Source, task: Task, server: ForkServer, options: Options, stack: contextlib.ExitStack
    ) -> None:
        self.source, self.task, self.options = source, task, options
        self._server, self._stack = server, stack
        self._running: dict[tuple[str, bool], Runner] = {}
        self.brings: set[str] = set()
        self.launched: set[str] = set()

    def runner(self, source: Source, *, watch: bool) -> Runner:
        """A loaded child for ``source``.

        Raises:
            RunnerFailed: IMPORT_ERROR, or its process ends while it is imported.
        """
        key = (source.name, watch)
        found = self._running.get(key)
        if found is None or not found.alive:
            found = Runner(self._server, source, device=self.options.device, timeout=self.options.timeout, watch=watch)
            self._stack.callback(found.close)
            found.load()
            self._running[key] = found
        return found

    def outside(self) -> list[str]:
        """What was changed about the processes from outside them; those are not used again."""
        found = []
        for runner in self._running.values():
            changed = runner.outside() if runner.alive else []
            found += changed
            if changed:
                runner.close()
        return found

    def strays(self) -> list[str]:
        """Ends processes that got away from their child; their names."""
        return self._server.strays()
