"""What stands in one worker of an engine: its patch, its report, windows that prove that candidates ran, captures."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fastkernels.errors import ServingError
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.patches.dispatch import dispatchers
from fastkernels.patches.interposition import Window
from fastkernels.patches.patch import Patch
from fastkernels.serving.worker_report import WorkerReport

if TYPE_CHECKING:
    from fastkernels.evaluation.capture.in_worker import WorkerCapture


class Standing:
    """One patched (or watched) model in this process. Its methods take and return JSON, for engines call them by name
    from other processes."""

    def __init__(
        self, *, model: nn.Module, handle: Patch | None, told: WorkerReport, report_dir: Path | None = None
    ) -> None:
        self.model, self.handle = model, handle
        self._told, self._report_dir = told, report_dir
        self._window: Window | None = None
        self._capture: WorkerCapture | None = None
        self.call_context: Callable[[], AbstractContextManager[Any]] = nullcontext  # of probes, as the engine needs it
        self.eager_window: Callable[[], AbstractContextManager[Any]] = nullcontext  # in it the engine runs as Python

    def report(self) -> WorkerReport:
        """As of now."""
        standing = [d for _, d in dispatchers(self.model)]
        return self._told.model_copy(
            update={
                "dispatchers": len(standing),
                "calls": sum(d.calls for d in standing),
                "patch": self.handle.report if self.handle is not None else None,
            }
        )

    def report_json(self) -> str:
        """``WorkerReport`` as JSON; also written to the report folder, where there is one."""
        self.write()
        return self.report().model_dump_json()

    def start_window(self) -> str:
        """Opens a profiler window around the calls that follow.

        Raises:
            ServingError: nothing is patched here, or a window is open.
        """
        if self.handle is None:
            raise ServingError(f"{self.report().summary}: nothing is patched here that a window could show.")
        if self._window is not None:
            raise ServingError(f"{self.report().summary}: a window is open already. End it first.")
        self._window = self.handle.observe().__enter__()
        return ""

    def end_window(self) -> str:
        """Ends the window; an ``Interposition`` as JSON.

        Raises:
            ServingError: no window is open.
        """
        if self._window is None:
            raise ServingError(f"{self.report().summary}: no window is open. Start one before the calls.")
        window, self._window = self._window, None
        window.__exit__(None, None, None)
        return window.result.model_dump_json()

    def start_capture(self, asked: str) -> str:
        """Begins to record the calls that follow, as ``Asked`` of ``evaluation.capture.in_worker`` says in JSON.

        Raises:
            FastkernelsError: a capture is under way, or the model cannot be captured.
        """
        if self._capture is None:
            from fastkernels.evaluation.capture.in_worker import WorkerCapture

            self._capture = WorkerCapture(self)
        self._capture.start(asked)
        return ""

    def end_capture(self) -> str:
        """Ends it, and writes it to the folder that was asked for; a ``Capture`` as JSON.

        Raises:
            ServingError: none is under way.
        """
        if self._capture is None:
            raise ServingError(f"{self.report().summary}: no capture is under way. Start one before the calls.")
        return self._capture.end()

    def sites(self) -> str:
        """``[[path, task], ...]`` of what stands, for the null arm of a measurement."""
        standing = self.handle.dispatchers if self.handle is not None else {}
        return json.dumps([(path, d.proposal.task) for path, d in standing.items()])

    def write(self) -> Path | None:
        """Writes the report to ``<report_dir>/<engine>-<model>-rank<rank>.json``, whole or not at all."""
        if self._report_dir is None:
            return None
        told = self._told
        file = self._report_dir / f"{told.engine}-{told.model}-rank{told.rank}.json"
        self._report_dir.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as path:
            path.write_text(self.report().model_dump_json(indent=1))
        return file

    def verbs(self) -> dict[str, Callable[..., Any]]:
        """What other processes may call, under the names that they know in a worker."""
        return {
            "fastkernels_report": self.report_json,
            "fastkernels_sites": self.sites,
            "fastkernels_start_window": self.start_window,
            "fastkernels_end_window": self.end_window,
            "fastkernels_start_capture": self.start_capture,
            "fastkernels_end_capture": self.end_capture,
        }
