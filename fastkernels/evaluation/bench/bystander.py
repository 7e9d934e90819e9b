"""The suspect while others are timed: it stands still, what it started is gone, and it leaves them room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastkernels.evaluation.bench import process
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.runner import Runner

RAN_SHARE, RAN_SECONDS = 0.1, 0.02  # of the others' time; the system books a little of what ran before too late
MEMORY_SHARE = 0.25  # of the machine's


class Bystander:
    """What the ``suspect`` does to the others' turns, as the system tells it.

    Args:
        others: what else is to be told of the candidate's surroundings: processes that it started, say.
    """

    def __init__(self, suspect: Runner, others: Callable[[], list[str]]) -> None:
        self._suspect, self._others = suspect, others
        self._ran = self._turns = 0.0
        self._usual = 0  # bytes that others held

    def check(self) -> None:
        """To be called when its turn is over: whatever could disturb the next one's is there by then.

        Raises:
            RunnerFailed: TAMPERED.
        """
        held, there = process.memory_bytes(self._suspect.pid), process.machine_bytes()
        found = self._others()
        if held > self._usual + MEMORY_SHARE * there:
            found.append(f"it holds {held >> 20} MiB of the machine's {there >> 20} while others are timed")
        if found:
            raise RunnerFailed("TAMPERED", found[0])

    @contextmanager
    def turn(self, runner: Runner) -> Iterator[None]:
        """A turn of ``runner``'s: the suspect may not run meanwhile.

        Raises:
            RunnerFailed: TAMPERED.
        """
        before = process.cpu_seconds(self._suspect.pid)
        yield
        self._turns += runner.seconds
        self._usual = max(self._usual, process.memory_bytes(runner.pid))
        self._ran += max(0.0, process.cpu_seconds(self._suspect.pid) - before)
        if self._ran > max(RAN_SHARE * self._turns, RAN_SECONDS):
            raise RunnerFailed("TAMPERED", f"it ran for {self._ran * 1e3:.0f} ms of the others' turns")
