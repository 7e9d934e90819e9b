"""In a child: the candidates that stand inside a candidate of a higher level, as where they are deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastkernels.evaluation.bench.loaded import loaded
from fastkernels.evaluation.bench.observe import brought
from fastkernels.runtime.candidate import Candidate
from fastkernels.tasks.task import Task


class Parts:
    """Loads each when one of its task is wanted. ``brings`` are kernels that came with them: they are judged where
    their own candidates are."""

    def __init__(self, sources: Mapping[str, Mapping[str, Any]], *, device: torch.device) -> None:
        self.brings: set[str] = set()
        self._sources, self._device = sources, device
        self._loaded: dict[str, Candidate] = {}

    def candidate(self, task: Task, facts: Mapping[str, Any], *, dtype: torch.dtype) -> Candidate | None:
        """The one for ``task``; None where there is none, or it does not support this.

        Raises:
            CandidateError: it cannot be loaded.
        """
        if task.name not in self._sources:
            return None
        if task.name not in self._loaded:
            before = set(brought(self._device, set()))
            self._loaded[task.name] = loaded(task, dict(self._sources[task.name]))
            self.brings |= set(brought(self._device, set())) - before
        found = self._loaded[task.name]
        refused = found.supports.refusal(device=self._device, dtype=dtype, facts=facts)
        return None if refused is not None or found.cls is task.interface else found
