"""A capture in the workers of a running engine, from the process that holds it."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastkernels.errors import EvaluationError, FastkernelsError
from fastkernels.evaluation.capture.in_worker import Asked
from fastkernels.evaluation.capture.record import Capture
from fastkernels.evaluation.capture.recorder import Settings
from fastkernels.evaluation.capture.store import JSON, load_capture, require_free

Call = Callable[..., list[str]]
START, END = "fastkernels_start_capture", "fastkernels_end_capture"
LOGGER = logging.getLogger("fastkernels")
UNKNOWN = "Workers know it where FASTKERNELS_WATCH=1 was set before the engine started."
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
        patience_s: float | None = None,
    ) -> None:
        self._call = caller(engine, patience_s)
        self._out = out.absolute() if out is not None else None
        self.asked = Asked(
            values=settings.values,
            prompts=settings.prompts,
            max_bytes=settings.max_bytes,
            per_kind=settings.per_kind,
            name=name,
            workload=workload,
            generation=generation or {},
            out=str(self._out) if self._out is not None else "",
        )
        self.results: list[Capture] = []

    @property
    def result(self) -> Capture:
        """Of rank 0."""
        if not self.results:
            raise EvaluationError("capture: an engine's workers answer at the end. Ask for result after the `with`.")
        return self.results[0]

    def __enter__(self) -> Self:
        if self._out is not None:
            require_free(self._out, under=True)
        try:
            self._call(START, self.asked.model_dump_json())
        except FastkernelsError as error:
            if UNDER_WAY not in str(error):  # else it is somebody else's
                self._end_quietly()  # ranks that did begin; the others say that none is
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # that error is the caller's, whatever a broken engine says now
            self._end_quietly()
            return
        try:
            answers = self._call(END)
        except FastkernelsError as failure:
            if not self._written():
                raise
            raise EvaluationError(
                f"{failure} What its workers wrote before that lies in {self._out}: {len(self.results)} ranks."
            ) from failure
        self.results = sorted((Capture.model_validate_json(a) for a in answers), key=lambda c: c.rank)
        for capture in self.results:
            capture._folder = self._out / f"rank{capture.rank}" if self._out is not None else None

    def _end_quietly(self) -> None:
        """Ends it where something else has failed already; ``results`` are what the workers wrote."""
        try:
            self._call(END)
        except FastkernelsError as failure:
            LOGGER.warning("capture: the engine did not end it: %s", failure)
        self._written()

    def _written(self) -> bool:
        """Reads what lies in the ranks' folders into ``results``."""
        found = sorted(self._out.glob(f"rank*/{JSON}")) if self._out is not None else []
        self.results = sorted(map(load_capture, found), key=lambda c: c.rank)
        return bool(self.results)


def _ask_vllm(engine: Any, verb: str, *arguments: str) -> list[str]:
    try:
        answers: list[str] = engine.collective_rpc(verb, args=arguments)
    except Exception as error:  # what a worker in another process raised comes back as a bare Exception
        hint = f" {UNKNOWN}" if any(told in str(error) for told in ("not implemented", "no attribute")) else ""
        raise EvaluationError(f"{verb}: {type(error).__name__}: {str(error).rstrip('.')}.{hint}") from error
    return answers


def _ask_entry(engine: Any, verb: str, *arguments: str) -> list[str]:
    """An engine of an evaluation, of either kind."""
    try:
        answers: list[str] = engine.call(verb, *arguments)
    except FastkernelsError:
        raise
    except Exception as error:  # as above
        raise EvaluationError(f"{verb}: {type(error).__name__}: {error}.") from error
    return answers


def caller(engine: Any, patience_s: float | None = None) -> Call:
    """How the workers of an engine are asked.

    Args:
        patience_s: for the answers of an SGLang engine's ranks.

    Raises:
        EvaluationError: it is no engine that is known, or one that answers only to coroutines or over a network.
    """
    kind = f"{type(engine).__module__}.{type(engine).__qualname__}"
    package = kind.partition(".")[0]
    rpc = getattr(engine, "collective_rpc", None)
    if inspect.iscoroutinefunction(rpc):
        raise EvaluationError(
            f"{kind}: its workers answer to coroutines only. Capture a vllm.LLM made alike, or a scenario, "
            f"or do by hand what a capture does: `await engine.collective_rpc({START!r}, args=('{{}}',))` before the "
            f"requests and {END!r} after them, the JSON of `in_worker.Asked` as the argument."
        )
    if package == "vllm" and rpc is not None:
        return functools.partial(_ask_vllm, engine)
    if package == "sglang" and rpc is not None:
        from fastkernels.serving.sglang_client import call

        return lambda verb, *arguments: call(engine, verb, *arguments, patience_s=patience_s)  # type: ignore[arg-type] # two of its verbs
    if callable(getattr(engine, "call", None)):  # an engine of an evaluation
        return functools.partial(_ask_entry, engine)
    raise EvaluationError(
        f"{kind}: a live nn.Module is wanted, a vllm.LLM, or an sglang.Engine. A server's client cannot reach its "
        "workers: make the engine in this process, or capture a scenario."
    )
