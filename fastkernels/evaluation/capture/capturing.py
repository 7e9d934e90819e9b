"""``fastkernels.capture``: what passes the sites of a live model, an engine's workers, or a scenario's entries."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.eagerly import eagerly
from fastkernels.evaluation.capture.recipe import name_of
from fastkernels.evaluation.capture.record import Capture, GraphCheck
from fastkernels.evaluation.capture.recorder import Recorder, Settings
from fastkernels.evaluation.capture.store import require_free, save_capture
from fastkernels.patches.recognise import Recognition, adapters_for, recognise


class Capturing:
    """A capture under way; see ``fastkernels.capture``. ``result`` is what was seen up to now."""

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        *,
        out: Path | None,
        name: str = "",
        workload: str = "",
        engine: str = "",
        recognition: Recognition | None = None,
        **told: Any,
    ) -> None:
        self.model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        self.settings, self.out, self._told = settings, out, told
        self._name, self._workload = name, workload
        self._engine = engine or _host_of(self.model)
        self.recognition = recognition
        self._recorder: Recorder | None = None
        self.graph: GraphCheck | None = None
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._ended = False

    def __enter__(self) -> Self:
        if any(t.is_meta for t in self.model.parameters()):
            raise EvaluationError(f"{type(self.model).__name__} has parameters without values (meta device): load it.")
        if self.recognition is None:
            self.recognition = recognise(self.model, adapters_for(self.model))
        if not self.recognition.sites:
            raise EvaluationError(f"{type(self.model).__name__}: none of its modules is a task's; nothing to capture.")
        if self.out is not None:
            require_free(self.out)
        self._recorder = Recorder(self.model, self.recognition, self.settings, engine=self._engine)
        self._recorder.install()
        self._stack.enter_context(eagerly())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as ending:  # the last first, and each whatever another one raises
            if kind is None and self.out is not None and not self._ended:
                ending.callback(self.save, self.out)
            ending.callback(self._stack.close)
            ending.callback(self._require().remove)
            self._ended = True

    def check_graph(self, run: Callable[[], Any], *, compiled: bool = False) -> GraphCheck:
        """Makes the calls of ``run`` once more through Dynamo, and compares shapes, strides and dtypes at every site
        with what was seen eagerly: those are what CUDA graphs of the model are captured at. To be called inside the
        ``with``.

        Args:
            compiled: ``run`` calls what is compiled already; else the model's own calls are compiled here.
        """
        from fastkernels.evaluation.capture.graph import check_traced

        self.graph = check_traced(self._require(), run, compile_it=not compiled)
        return self.graph

    def silent(self) -> AbstractContextManager[None]:
        """Calls in it are not recorded: those that only make a host ready."""
        return self._require().silent()

    @property
    def result(self) -> Capture:
        """As of now."""
        recorder = self._require()
        first = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        config = getattr(self.model, "config", None)
        notes = [f"{recorder.uncounted} warm-up or idle steps were not counted"] if recorder.uncounted else []
        if not recorder.root_calls and not any(s.variants for s in recorder.sites()):
            notes.append("nothing was seen: no call reached the model eagerly")
        store = recorder.store
        found = Capture(
            **{
                "model": self._name or getattr(config, "_name_or_path", "") or type(self.model).__name__,
                "cls": type(self.model).__name__,
                "engine": self._engine,
                "dtype": name_of(first.dtype),
                "device": first.device.type,
                "workload": self._workload,
                "captured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "max_batch": recorder.max_batch,
                "values": self.settings.values,
                "prompts": self.settings.prompts,
                "max_bytes": self.settings.max_bytes,
                "stored_bytes": store.bytes,
                "dropped": store.dropped,
                "withheld": recorder.withheld,
                "root_calls": dict(recorder.root_calls),
                "sites": recorder.sites(),
                "unrecognised": [f"{u.path} ({u.cls}): {u.reason}" for u in recorder.recognition.unrecognised],
                "samples": store.samples(),
                "routing": recorder.routing.records(),
                "graph": self.graph,
                "notes": notes,
            }
            | self._told
        )
        found._folder = self._folder
        return found

    def save(self, folder: str | Path) -> Capture:
        """Writes ``capture.json``, ``values.safetensors`` and ``report.md`` into a folder.

        Raises:
            EvaluationError: another capture lies there.
        """
        there, store = Path(folder).expanduser(), self._require().store
        if there != self._folder:
            require_free(there)
        self._folder = there
        return save_capture(self.result, there, store)

    def _require(self) -> Recorder:
        if self._recorder is None:
            raise EvaluationError(
                "capture: nothing is recorded yet. Use it as a context: with capture(model) as c: ..."
            )
        return self._recorder


def _host_of(model: nn.Module) -> str:
    packages = {type(part).__module__.partition(".")[0] for part in model.modules()}
    return next((n for n in ("vllm", "sglang") if n in packages), "hf" if "transformers" in packages else "torch")
