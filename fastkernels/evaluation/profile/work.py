"""What is profiled: a candidate on one case, warmed up, then called a few times inside the profiler's window.

Run as a module it is the process that ncu and nsys look at; the torch profiler looks at it from inside."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.errors import EvaluationError
from fastkernels.patches.kernel_names import KernelNames, kernel_names
from fastkernels.runtime.candidate import Candidate
from fastkernels.runtime.load import load_candidates
from fastkernels.tasks import Case, Cost, get_task

WARM_UP = 3
MOST_INPUTS = 16


class Job(BaseModel):
    """What a profiled process is told, as JSON on its command line."""

    task: str
    candidates: str = "shipped"
    case: str
    dtype: str
    device: str
    calls: int
    cache_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """A candidate, built, with more inputs than the cache holds (16 at most), in turn."""

    job: Job
    candidate: Candidate
    case: Case

    @classmethod
    def of(cls, job: Job) -> Work:
        """Loads what the job names.

        Raises:
            EvaluationError: no such candidate or case.
            CandidateError: the candidate or its task cannot be loaded.
        """
        task = get_task(job.task)
        loaded = load_candidates(job.candidates)
        candidate = loaded.get(task.name)
        if candidate is None:
            there = ", ".join(loaded.by_task) or "none"
            raise EvaluationError(f"profile: {job.candidates} has no candidate for {task.name}. It has: {there}.")
        cases = {case.name: case for case in task.cases()}
        if job.case not in cases:
            raise EvaluationError(f"profile: {task.name} has no case {job.case!r}. Cases: {', '.join(cases)}.")
        return cls(job=job, candidate=candidate, case=cases[job.case])

    @cached_property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.job.dtype)

    @cached_property
    def module(self) -> nn.Module:
        return self.candidate.task.build(
            self.case, implementation=self.candidate.cls, device=self.job.device, dtype=self.dtype
        )

    @cached_property
    def inputs(self) -> list[tuple[Any, ...]]:
        """Different contents; together three times the cache where ``MOST_INPUTS`` reach that far."""
        first = self._draw(0)
        size = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(first) if isinstance(t, torch.Tensor))
        wanted = min(MOST_INPUTS, 3 * self.job.cache_bytes // max(size, 1) + 1)
        return [first, *(self._draw(seed) for seed in range(1, wanted))]

    def _draw(self, seed: int) -> tuple[Any, ...]:
        return self.case.draw(torch.Generator().manual_seed(seed), torch.device(self.job.device), self.dtype)

    def refusal(self) -> str | None:
        """Why the candidate declines the case, or None."""
        bound = inspect.signature(self.candidate.task.interface).bind(**self.case.init)
        bound.apply_defaults()
        device = torch.device(self.job.device)
        return self.candidate.supports.refusal(device=device, dtype=self.dtype, facts=dict(bound.arguments))

    def cost(self) -> Cost:
        """The task's least bytes and operations for this case."""
        reference = self.candidate.task.build(self.case, device=self.job.device, dtype=self.dtype)
        return self.candidate.task.cost(reference, *self.inputs[0])  # type: ignore[call-arg] # the task's own arguments

    def names(self) -> KernelNames:
        """The candidate's own kernels; Triton's are known by all their names once they are compiled."""
        return kernel_names(self.candidate.cls)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Builds it and calls it a few times.

        Raises:
            EvaluationError: its constructor or its forward raises.
        """
        try:
            for i in range(WARM_UP):
                self.module(*self.inputs[i % len(self.inputs)])
            self._synchronize()
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            raise EvaluationError(
                f"profile: {self.candidate.label} {self.job.task}: {self.job.case} {self.job.dtype} on "
                f"{self.job.device}: it raises {type(error).__name__}: {told}. Mend it, or give another --case; "
                f"`fastkernels bench` judges all of them."
            ) from error

    @torch.no_grad()
    def run(self) -> None:
        """The calls to profile."""
        for i in range(self.job.calls):
            self.module(*self.inputs[i % len(self.inputs)])
        self._synchronize()

    def _synchronize(self) -> None:
        if torch.device(self.job.device).type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def profiled_window() -> Iterator[None]:
    """What ncu and nsys record: between ``cudaProfilerStart`` and ``cudaProfilerStop``."""
    runtime = torch.cuda.cudart()
    runtime.cudaProfilerStart()
    try:
        yield
    finally:
        runtime.cudaProfilerStop()


def main(arguments: list[str], window: Callable[[], AbstractContextManager[None]] = profiled_window) -> None:
    """Runs the job in ``arguments[0]`` inside the profiler's window."""
    work = Work.of(Job.model_validate_json(arguments[0]))
    work.warm_up()
    with window():
        work.run()


if __name__ == "__main__":
    main(sys.argv[1:])
