"""A capture in one worker of an engine: begun and ended by its verbs, written on the worker's machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fastkernels.errors import ServingError
from fastkernels.evaluation.capture.capturing import Capturing
from fastkernels.evaluation.capture.record import GraphCheck, Values
from fastkernels.evaluation.capture.recorder import PER_KIND, Settings
from fastkernels.patches.recognise import Recognition
from fastkernels.serving.graphs import Graphs

if TYPE_CHECKING:
    from fastkernels.serving.standing import Standing


class Asked(BaseModel):
    """What ``fastkernels_start_capture`` is given, as JSON."""

    values: Values = "none"
    prompts: bool = False
    max_bytes: int = 1 << 28
    per_kind: int = PER_KIND
    name: str = ""
    workload: str = ""
    generation: dict[str, Any] = {}
    out: str = ""  # a folder on the worker's machine: each rank writes into its own, rank<n>

    @property
    def settings(self) -> Settings:
        return Settings(values=self.values, prompts=self.prompts, max_bytes=self.max_bytes, per_kind=self.per_kind)


class WorkerCapture:
    """The captures of one worker, one at a time; sites are recognised at the first."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._recognition: Recognition | None = None
        self._stack = contextlib.ExitStack()
        self._capturing: Capturing | None = None
        self._graphs: Graphs | None = None

    def start(self, asked: str) -> None:
        """Begins.

        Raises:
            ServingError: one is under way.
            EvaluationError: candidates stand on the model, or it has no sites.
        """
        told = self._standing.report()
        if self._capturing is not None:
            raise ServingError(f"{told.summary}: a capture is under way already. End it first.")
        wish = Asked.model_validate_json(asked)
        capturing = Capturing(
            self._standing.model,
            wish.settings,
            out=Path(wish.out) / f"rank{told.rank}" if wish.out else None,
            name=wish.name,
            workload=wish.workload,
            engine=told.engine,
            recognition=self._recognition,
            engine_version=told.version,
            rank=told.rank,
            world_size=told.world_size,
            generation=wish.generation,
        )
        with contextlib.ExitStack() as stack:
            with self._standing.call_context():
                stack.enter_context(capturing)
            self._graphs = stack.enter_context(self._standing.eager_window())
            self._stack = stack.pop_all()
        self._recognition, self._capturing = capturing.recognition, capturing

    def end(self) -> str:
        """Ends it; the capture as JSON, which also lies where it was asked for.

        Raises:
            ServingError: none is under way.
        """
        capturing, self._capturing = self._capturing, None
        if capturing is None:
            raise ServingError(
                f"{self._standing.report().summary}: no capture is under way. Start one before the calls."
            )
        with self._stack:  # written whatever the question about graphs raises
            capturing.graph = graph_check(self._graphs, self._standing.report().compilation)
        return capturing.result.model_dump_json()


def graph_check(graphs: Graphs | None, compilation: str) -> GraphCheck:
    """What the engine's own choice of graphs says of the steps that were captured eagerly."""
    graphs = graphs or Graphs()
    sizes, padded, outside = graphs.sizes, graphs.padded, graphs.outside
    if not padded:
        captures = "CUDA graphs" in compilation and "CUDA graphs NONE" not in compilation
        why = "no step of the window would have run in a graph" if sizes else "the engine captures no graphs"
        why = graphs.unverified or why if captures and not sizes else why
        return GraphCheck(kind="sizes", passed=None, detail=f"not verified: {why} ({compilation})", sizes=sizes)
    if graphs.unverified:
        return GraphCheck(
            kind="sizes",
            passed=None,
            detail=f"not verified: {graphs.unverified} ({compilation})",
            sizes=sizes,
            padded=padded,
        )
    strange = {n: size for n, size in padded.items() if size not in sizes}
    detail = f"steps of {len(padded)} sizes run in captured graphs, padded to the graph's tokens; the engine's choice"
    detail += f"; {len(outside)} sizes run without a graph" if outside else ""
    return GraphCheck(
        kind="sizes",
        passed=not strange,
        detail=detail,
        differences=[f"{n} tokens go to a graph of {size}, which is not captured" for n, size in strange.items()],
        sizes=sizes,
        padded=padded,
    )
