"""Jobs on the devices of this machine, each in a process of its own with devices of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale import guard
from fastkernels.evaluation.scale.folder import RecordCount
from fastkernels.evaluation.scale.job import LOG, OUTCOME, Event, Job, Outcome

POLL_SECONDS = 0.1
TAIL_BYTES = 4000
LOCK_SECONDS = 10.0  # that the guard of a killed run has to end its job
END_SECONDS = 10.0  # that a killed job may take to vanish; a process inside a hung driver call never does
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Child:
    """A running job: its process, its lock on the folder, its log.

    The process is ``guard.py``, which kills all that the job started when it ends, or when this process dies.
    """

    def __init__(
        self,
        job: Job,
        *,
        folder: Path,
        devices: Sequence[str],
        where: str,
        base: Mapping[str, str],
        if_orphaned_remove: Path | None = None,
    ) -> None:
        """Starts it.

        Args:
            folder: where the job's folder is on this machine.
            devices: as in CUDA_VISIBLE_DEVICES.
            where: for the outcome, without the devices.
            base: the environment to which the job's is added.
            if_orphaned_remove: a temporary folder that goes with the job if this process dies.

        Raises:
            EvaluationError: another run holds the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.job, self._folder = job, folder
        self.where = f"{where} cuda {','.join(devices)}" if devices else f"{where} cpu"
        self._lock = _locked(folder)
        (folder / OUTCOME).unlink(missing_ok=True)
        environment = {**base, **job.environment, VISIBLE: ",".join(devices)}
        program = [sys.executable, "-I", "-S", guard.__file__, str(if_orphaned_remove or ""), *job.command_in(folder)]
        self._started = time.monotonic()
        try:
            with (folder / LOG).open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    program,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the caller, who ends the job in its turn
                    pass_fds=(self._lock,),
                )
        except BaseException:
            os.close(self._lock)
            raise

    def poll(self) -> Outcome | None:
        """The outcome once it ended; a job over its limit is killed here."""
        code = self._process.poll()
        if code is not None:
            return self._outcome(code, _reason(code))
        limit = self.job.timeout
        if limit is not None and time.monotonic() - self._started > limit:
            self.kill()
            return self._outcome(None, f"no end within its limit of {limit:g} s, killed")
        return None

    def kill(self, *, orphan: bool = False) -> None:
        """Ends the job and everything that it started; as an orphan, with the folder that goes with it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it ended by itself, or was killed before
            if not orphan:
                self._process.stdin.write(b"end")
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # a process that cannot die: leave it to the system
            self._process.kill()
            self._process.wait()
        self._unlock()

    def _outcome(self, code: int | None, reason: str) -> Outcome:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._unlock()
        with (self._folder / LOG).open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - TAIL_BYTES))
            tail = log.read().decode(errors="replace")
        seconds = time.monotonic() - self._started
        name = self.job.name
        return Outcome(
            name=name, returncode=code, reason=reason, seconds=seconds, where=self.where, log_tail=tail, key=""
        )

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def run_local(
    jobs: Sequence[Job],
    *,
    devices: Sequence[str],
    on_event: Callable[[Event], None],
    on_outcome: Callable[[Job, Outcome], None],
) -> None:
    """Runs all jobs, each device in one job at a time, and a CPU job only while nothing else runs.

    Jobs with the most devices go first: a large one would otherwise wait for small ones to leave room. Whatever is
    raised here or in a callback, Ctrl-C included, ends every running job first.
    """
    free = list(devices)
    waiting = sorted(jobs, key=lambda job: -job.gpus)
    running: list[tuple[Child, list[str], RecordCount]] = []
    for job in [job for job in waiting if job.gpus > len(devices)]:
        waiting.remove(job)
        reason = f"it needs {job.gpus} devices and there are {len(devices)}; run it where there are more"
        on_outcome(job, Outcome(name=job.name, returncode=None, reason=reason, where="local"))
    try:
        while waiting or running:
            for job in list(waiting):
                if job.gpus <= len(free) and (job.gpus or not running) and not _exclusive(running):
                    waiting.remove(job)
                    try:
                        child = Child(job, folder=job.folder, devices=free[: job.gpus], where="local", base=os.environ)
                    except EvaluationError as error:
                        on_outcome(job, Outcome(name=job.name, returncode=None, reason=str(error), where="local"))
                        continue
                    running.append((child, free[: job.gpus], RecordCount(job.folder)))
                    del free[: job.gpus]
                    on_event(Event(job=job.name, kind="started"))
            time.sleep(POLL_SECONDS)
            for entry in list(running):
                child, held, count = entry
                outcome = child.poll()
                if count.advanced():
                    name = child.job.name
                    on_event(Event(job=name, kind="progressed", records=count.lines, bytes=count.bytes))
                if outcome is not None:
                    running.remove(entry)
                    free += held
                    on_outcome(child.job, outcome)
    finally:
        for child, _, _ in running:
            child.kill()


def visible_devices(gpus: int | None) -> list[str]:
    """The devices to use, as CUDA_VISIBLE_DEVICES names them: ``gpus`` of the visible ones, None for all.

    Raises:
        EvaluationError: fewer are visible than asked for.
    """
    named = os.environ.get(VISIBLE)
    if gpus == 0:
        return []
    if named is not None:
        visible = [name.strip() for name in named.split(",") if name.strip()]
        visible = visible[: visible.index("-1")] if "-1" in visible else visible  # as CUDA reads it
    else:
        import torch

        visible = [str(index) for index in range(torch.cuda.device_count())]
    if gpus is not None and (gpus < 0 or gpus > len(visible)):
        known = f"{VISIBLE}={named}" if named is not None else f"{len(visible)} devices are visible"
        raise EvaluationError(f"gpus={gpus}: {known}. Give 0 to {len(visible)}, or leave it out for all.")
    return visible[:gpus]


def _exclusive(running: Sequence[tuple[Child, list[str], RecordCount]]) -> bool:
    return any(not held for _, held, _ in running)


def _locked(folder: Path) -> int:
    """A descriptor with the folder's lock, which the guard inherits: held until the last of them is gone."""
    lock = os.open(folder / "job.lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise EvaluationError(f"{folder}: another run is at work in it. Wait for it, or end it.") from None
            time.sleep(POLL_SECONDS)


def _reason(code: int) -> str:
    if code == 0:
        return ""
    if code > 0:
        return f"process ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        name = "no name"
    return f"process ended with signal {-code} ({name})"
