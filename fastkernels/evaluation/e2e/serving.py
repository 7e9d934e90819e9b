"""What an arm does when it is ordered to: builds and patches a model, serves workloads, answers, and says what ran.

Nothing that a candidate returns is unpickled by the parent: tensors go through safetensors files, numbers through JSON.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Family, Mode, Session, Tensors
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.setup import Setup
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.patches.patch import Patch, patch
from fastkernels.patches.report import Report

WARMUPS = 3  # passes: the first compiles, the second records CUDA graphs, the third replays them


class Serving:
    """An arm at work; each public method is an order."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model: nn.Module | None = None
        self.handle: Patch | None = None
        self.sessions: dict[Mode, Session] = {}
        self.outputs: dict[str, list[Tensors]] = {}

    def context(self) -> AbstractContextManager[Any]:
        """What is around every order."""
        return torch.inference_mode()

    # -- the reference process -----------------------------------------------------------------------------------------

    def oracle(self, file: str) -> dict[str, Any]:
        """Answers of the model in a wider dtype, over the same weights: float64 for float32, float32 for halves."""
        from fastkernels.evaluation.e2e.weights import parameters

        dtype = torch.float64 if self.setup.entry.dtype == "float32" else torch.float32
        model = self._build(dtype)
        save_answer(self._session(model, "eager").answer(), file)
        return {"oracle": f"{dtype}, eager".removeprefix("torch."), "parameters": parameters(model)}

    def control(self, file: str) -> dict[str, Any]:
        """Answers of the model with noise in its weights: what is known to be wrong."""
        from fastkernels.evaluation.e2e.perturb import CONTROL, perturb

        model = self._build(None)
        with perturb(model, CONTROL, seed=self.setup.entry.seed + 1):
            save_answer(self._session(model, "eager").answer(), file)
        return {"control": f"Gaussian noise of {CONTROL:.0%} of each matrix's own deviation"}

    # -- the arms ------------------------------------------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """Builds the model and patches it."""
        setup, started = self.setup, time.perf_counter()
        self.model = self._build(None)
        loaded = time.perf_counter()
        if setup.role == "candidate":
            self.handle = patch(
                self.model,
                setup.candidates,
                select=list(setup.select) or "all",
                lowering=setup.lowering,
                verify=setup.verify,
            )
        elif setup.role == "null":
            standing = set(setup.standing)
            self.handle = patch(
                self.model, "identity", select=lambda s: (s.path, s.task.name) in standing, verify=setup.verify
            )
        report = self.handle.report if self.handle is not None else None
        return {
            "load_seconds": loaded - started,
            "patch_seconds": time.perf_counter() - loaded if self.handle is not None else None,
            "patch": report and report.model_dump(mode="json"),
            "standing": [(p, d.proposal.task) for p, d in self.handle.dispatchers.items()] if self.handle else [],
        }

    def warm(self, mode: Mode, workloads: list[dict[str, Any]]) -> dict[str, float]:
        """Serves each workload so often that compilers have compiled it and CUDA graphs are recorded."""
        session, started = self._session(self.model, mode), time.perf_counter()
        for workload in workloads:
            for _ in range(WARMUPS):
                session.serve(Workload(**workload))
        return {"seconds": time.perf_counter() - started}

    def settle(self) -> dict[str, Any]:
        """Before the first timed block: what was made so far is out of the garbage collector's sight, so that an arm
        that imported more does not pay more for every collection."""
        gc.collect()
        gc.freeze()
        if self._cuda:
            torch.cuda.empty_cache()  # the arms share one device
            torch.cuda.reset_peak_memory_stats()
        return {}

    def block(self, mode: Mode, workload: dict[str, Any], passes: int) -> dict[str, Any]:
        """Serves the workload ``passes`` times."""
        session, work = self._session(self.model, mode), Workload(**workload)
        with pinned(self.setup):
            served = [session.serve(work) for _ in range(passes)]
        self.outputs[work.name] = [s.outputs for s in served]
        return {
            "requests": served[0].requests,
            "tokens": served[0].tokens,
            "latency_ms": [t for s in served for t in s.latency_ms],
            "ttft_ms": [t for s in served for t in s.ttft_ms],
            "tpot_ms": [t for s in served for t in s.tpot_ms],
            "elapsed_ms": [s.elapsed_ms for s in served if s.elapsed_ms is not None],
        }

    def keep(self, workload: str, at: int, file: str) -> dict[str, Any]:
        """Writes what one pass of the last block over a workload returned."""
        save_answer(self.outputs[workload][at], file)
        return {}

    def answer(self, mode: Mode, file: str) -> dict[str, Any]:
        """Writes the outputs on the check inputs."""
        save_answer(self._session(self.model, mode).answer(), file)
        return {}

    def plausible(self, mode: Mode, workload: dict[str, Any], file: str, noise: float | None) -> dict[str, Any]:
        """Scores another arm's timed outputs; ``noise`` as the family has it from the oracle."""
        work = Workload(**workload)
        share, details = self.family.plausible(self._session(self.model, mode), work, load_file(file))
        return {"share": float(share), "details": str(details)[:400]}

    def evidence(self, mode: Mode, workloads: list[dict[str, Any]]) -> dict[str, Any]:
        """What of the candidates shows in a window of real calls, and what stands on the model."""
        from fastkernels.evaluation.e2e.launches import launches_per_step
        from fastkernels.patches.dispatch import dispatchers

        session = self._session(self.model, mode)
        few = [one_batch(workload) for workload in workloads]

        def run() -> int:
            return sum(session.serve(work).steps for work in few)

        steps = run()
        standing = [d for _, d in dispatchers(self.model)]
        told: dict[str, Any] = {
            "dispatchers": len(standing),
            "dispatcher_calls": sum(d.calls for d in standing),
            "peak_memory_bytes": self._peak(),
        }
        if self.handle is not None:
            with self.handle.observe() as window:
                run()
            told["interposition"] = window.result.model_dump(mode="json")
            told["dispatcher_calls"] = sum(d.calls for d in standing)
            told["patch"] = self.handle.report.model_dump(mode="json")
        if self._cuda:
            launched = launches_per_step(run, steps)
            told["launches_per_step"] = launched and launched.host
        return told

    def cover(self, report: dict[str, Any], workload: dict[str, Any]) -> dict[str, Any]:
        """Share of this unpatched model's time that passes inside the modules that a report says are replaced."""
        from fastkernels.evaluation.coverage.coverage import coverage_of

        session, few = self._session(self.model, "eager"), one_batch(workload)
        found = coverage_of(Report.model_validate(report), self.model, lambda: session.serve(few))
        return found.model_dump(mode="json")

    # -- pieces --------------------------------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        return family_of(self.setup.entry.workloads[0], self.setup.entry.engine)

    @property
    def _cuda(self) -> bool:
        return torch.device(self.setup.device).type == "cuda"

    def _build(self, dtype: torch.dtype | None) -> nn.Module:
        from fastkernels.evaluation.e2e.weights import build

        return build(self.setup.entry, device=self.setup.device, dtype=dtype)

    def _session(self, model: nn.Module | None, mode: Mode) -> Session:
        if model is None:
            raise EvaluationError("no model is loaded in this arm.")
        if self.setup.role == "reference":
            return self._new_session(model, mode)
        if mode not in self.sessions:
            self.sessions[mode] = self._new_session(model, mode)
        return self.sessions[mode]

    def _new_session(self, model: nn.Module, mode: Mode) -> Session:
        entry = self.setup.entry
        return self.family.session(
            model,
            mode=mode,
            backend="inductor" if self.handle is None else "fastkernels",
            seed=entry.seed,
            texts=entry.prompts(),
            check_size=entry.check_size,
        )

    def _peak(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_batch(workload: dict[str, Any]) -> Workload:
    """The workload with as many requests as one batch holds: a profiler's window is to be short."""
    work = Workload(**workload)
    return work.model_copy(update={"requests": min(work.batch, work.requests)})


def save_answer(tensors: Tensors, file: str) -> None:
    """Writes tensors, whole or not at all."""
    with whole_file(Path(file)) as path:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


@contextlib.contextmanager
def pinned(setup: Setup) -> Iterator[None]:
    """On one thread of a CPU, the same core for every arm; with more, the system places them."""
    if setup.threads != 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(former)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)
