"""A capture in the workers of a running engine, from the process that holds it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.in_worker import Asked
from fastkernels.evaluation.capture.record import Capture
from fastkernels.evaluation.capture.recorder import Settings

Call = Callable[..., list[str]]
START, END = "fastkernels_start_capture", "fastkernels_end_capture"
UNDER_WAY = "under way already"  # what a worker says where it captures for somebody else


class EngineCapturing:
    """A capture under way in every worker; ``results`` has one a rank afterwards, ``result`` is that of rank 0.

    Workers write to ``out/rank<n>`` on their own machine.
    """

    def __init__(
        self,
        engine: Any,
        settings: Settings,
        *,
        out: Path | None,
        name: str = "",
        workload: str = "",
        generation: dict[str, Any] | None = None,
    ) -> None:
        self._call = caller(engine)
        self.asked = Asked(
            values=settings.values,
            prompts=settings.prompts,
            max_bytes=settings.max_bytes,
            per_kind=settings.per_kind,
            name=name,
            workload=workload,
            generation=generation or {},
            out=str(out.absolute()) if out is not None else "",
        )
        self.results: list[Capture] = []

    @property
    def result(self) -> Capture:
        """Of rank 0."""
        if not self.results:
            raise EvaluationError("capture: an engine's workers answer at the end. Ask for result after the `with`.")
        return self.results[0]

    def __enter__(self) -> Self:
        try:
            self._call(START, self.asked.model_dump_json())
        except EvaluationError as error:
            if UNDER_WAY not in str(error):  # else it is somebody else's
                with contextlib.suppress(EvaluationError):  # ranks that did begin; the others say that none is
                    self._call(END)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        answers = self._call(END)
        self.results = sorted((Capture.model_validate_json(a) for a in answers), key=lambda c: c.rank)
        for capture in self.results:
            capture._folder = Path(self.asked.out) / f"rank{capture.rank}" if self.asked.out else None


def _ask_vllm(engine: Any, verb: str, *arguments: str) -> list[str]:
    try:
        answers: list[str] = engine.collective_rpc(verb, args=arguments)
    except (NotImplementedError, AttributeError, RuntimeError) as error:  # the last where workers are other processes
        raise EvaluationError(
            f"{verb}: {error}. Workers know it where FASTKERNELS_WATCH=1 was set before the engine started."
        ) from error
    return answers


def caller(engine: Any) -> Call:
    """How the workers of an engine are asked.

    Raises:
        EvaluationError: it is no engine that is known.
    """
    package = type(engine).__module__.partition(".")[0]
    if package == "vllm" and hasattr(engine, "collective_rpc"):
        return functools.partial(_ask_vllm, engine)
    if package == "sglang" and hasattr(engine, "collective_rpc"):
        from fastkernels.serving.sglang_client import call

        return lambda verb, *arguments: call(engine, verb, *arguments)  # type: ignore[arg-type] # two of its verbs
    if callable(getattr(engine, "call", None)):  # an engine of an evaluation
        asked: Call = engine.call
        return asked
    raise EvaluationError(
        f"{type(engine).__module__}.{type(engine).__qualname__}: a live nn.Module is wanted, a vllm.LLM, or an "
        "sglang.Engine."
    )
