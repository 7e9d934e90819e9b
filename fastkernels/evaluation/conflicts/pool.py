"""A warm worker that serves jobs one after another; if it dies itself, every stage it still owed is a CRASH."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from fastkernels.evaluation.conflicts.job import WORKER, Job, Result
from fastkernels.evaluation.conflicts.report import Evidence, Finding

SAID_CHARACTERS = 600
ENVIRONMENT = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to ask whether there is a device must not initialise the driver: it forks
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no compile workers, which a fork would not take along
}


class Worker:
    """A context manager around the worker process; it is started by the first job, and again after it died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.owes = False  # results of a job
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self.log.close()

    def results_of(self, job: Job) -> Iterator[Result]:
        """One result for every stage of the job, in the order in which they end."""
        missing = list(job.stages)
        process = self._running()
        self.owes = True
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(job.model_dump_json() + "\n")
            process.stdin.flush()
            while missing and (line := process.stdout.readline()):
                result = Result.model_validate_json(line)
                missing.remove(result.stage)
                yield result
        except BrokenPipeError:
            pass  # it died between two jobs; what is missing says so
        self.owes = bool(missing)
        if missing:
            self._end()
            self.log.seek(0)
            said = self.log.read().decode(errors="replace")[-SAID_CHARACTERS:]
            text = f"the worker ended (status {process.returncode}) before this stage: {said}"
            for stage in missing:
                finding = Finding(code="CRASH", evidence=Evidence(text=text))
                yield Result(stage=stage, outcome="crash", findings=[finding])

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
        return self.process

    def _end(self) -> None:
        if self.process is None:
            return
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()  # the end of its jobs: it cleans up and leaves
        if self.owes:
            self.process.terminate()  # it takes its children with it
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
