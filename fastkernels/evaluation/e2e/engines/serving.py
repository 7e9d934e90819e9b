"""What an arm of a serving engine does when it is ordered to, and the reference process that engines are judged by."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.engine import start
from fastkernels.evaluation.e2e.engines.fit import Fit
from fastkernels.evaluation.e2e.engines.proof import reports_of, windows_of
from fastkernels.evaluation.e2e.engines.session import EngineSession
from fastkernels.evaluation.e2e.engines.weights import save_drawn
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.families.prompt_stream import PromptStream
from fastkernels.evaluation.e2e.serving import Serving, one_batch
from fastkernels.evaluation.e2e.setup import Setup
from fastkernels.evaluation.e2e.sizes import resolve

NO_COVERAGE = "inside an engine no time is kept by module, and in a replayed graph there are no modules: not measured"


class EngineReference(Serving):
    """Oracle and control in transformers. The control is built in the entry's dtype: what engines load is saved."""

    def _build(self, dtype: torch.dtype | None) -> nn.Module:
        model = super()._build(dtype)
        if dtype is None:
            save_drawn(self.setup.entry, model, self.setup.model)
        return model


class EngineServing(Serving):
    """An arm whose model is in an engine. It has one engine at a time: another mode is another start."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._guard()
        self._mode: Mode | None = None
        self._started: EngineSession | None = None

    def context(self) -> AbstractContextManager[Any]:
        """None: parameters that a patch keeps are no inference tensors."""
        return contextlib.nullcontext()

    def load(self) -> dict[str, Any]:
        """Starts the engine, in which the plugin patches."""
        started = time.perf_counter()
        modes = self.setup.entry.modes_on(self.setup.device.partition(":")[0])
        engine = self._session(None, modes[0]).engine
        took = time.perf_counter() - started
        ranks = self.setup.entry.tp
        reports = reports_of(engine.call("fastkernels_report"), ranks=ranks)
        sites = {tuple(map(tuple, json.loads(told))) for told in engine.call("fastkernels_sites")}
        if len(sites) != 1:
            raise EvaluationError(f"ranks differ in the sites at which they are patched: {len(sites)} sets")
        patch = reports[0].patch
        return {
            "load_seconds": took,
            "patch_seconds": patch and patch.seconds,
            "patch": patch and patch.model_dump(mode="json"),
            "standing": list(sites.pop()),
        }

    def settle(self) -> dict[str, Any]:
        gc.collect()
        gc.freeze()
        return {}

    def evidence(self, mode: Mode, workloads: list[dict[str, Any]]) -> dict[str, Any]:
        """What shows in a window of real calls in every rank, and what stands there."""
        session, ranks = self._session(None, mode), self.setup.entry.tp
        few, call = [one_batch(workload) for workload in workloads], session.engine.call
        told: dict[str, Any] = {}
        if self.setup.role != "baseline":
            call("fastkernels_start_window")
            for work in few:
                session.serve(work)
            told["interposition"] = windows_of(call("fastkernels_end_window"), ranks=ranks).model_dump(mode="json")
        reports = reports_of(call("fastkernels_report"), ranks=ranks)
        patch, standing = reports[0].patch, [report.dispatchers for report in reports]
        return told | {
            # An unpatched arm has none in any rank, a patched one some in each.
            "dispatchers": sum(standing) if self.setup.role == "baseline" else min(standing),
            "dispatcher_calls": sum(report.calls for report in reports),
            "patch": patch and patch.model_dump(mode="json"),
            "peak_memory_bytes": self._peak() if self.setup.device == "cpu" and ranks == 1 else None,
        }

    def plausible(self, mode: Mode, workload: dict[str, Any], file: str, noise: float | None) -> dict[str, Any]:
        self._session(None, mode).noise = noise or 0.0
        return super().plausible(mode, workload, file, noise)

    def cover(self, report: dict[str, Any], workload: dict[str, Any]) -> dict[str, Any]:
        raise EvaluationError(NO_COVERAGE)

    def _session(self, model: nn.Module | None, mode: Mode) -> EngineSession:
        if self._started is not None and self._mode == mode:
            return self._started
        if self._started is not None:
            self._started.engine.close()
            self._started = None
        setup, entry = self.setup, self.setup.entry
        config = AutoConfig.from_pretrained(setup.model)
        fit = Fit.of(entry, resolve(entry, self.family), config)
        vocabulary = int(config.get_text_config(decoder=True).vocab_size)
        try:
            engine = start(entry, model=setup.model, mode=mode, device=setup.device.partition(":")[0], fit=fit)
        except Exception as error:  # an engine fails in any way
            raise EvaluationError(f"{entry.engine} does not start: {type(error).__name__}: {error}") from error
        prompts = PromptStream(texts=entry.prompts(), folder=setup.model, vocabulary=vocabulary, seed=entry.seed)
        self._mode = mode
        self._started = EngineSession(
            engine, prompts=prompts, vocabulary=vocabulary, seed=entry.seed, check_size=entry.check_size
        )
        return self._started

    def _guard(self) -> None:
        """Engines have children that outlive a killed parent: a shell outside this session ends them in its place."""
        group = os.getpgid(0)
        self._pipe = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _; kill -9 -{group}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
