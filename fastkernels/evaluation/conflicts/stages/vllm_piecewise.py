"""vllm: a piece of a model compiled by vLLM's own backend, piecewise, without guards; on a device in its CUDA graphs.

It is compiled in a profiling run, whose context has no metadata, and captured that way as well: an operator that reads
the context, and at which the graph is not split, keeps what it did then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.conflicts.capture import Uncapturable, run_compiled
from fastkernels.evaluation.conflicts.compare import Judge, close, copied
from fastkernels.evaluation.conflicts.graphed import where_of
from fastkernels.evaluation.conflicts.observe import Watch, frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.served import Buffers, Layout, Served, Step
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject
from fastkernels.evaluation.conflicts.vllm_engine import Engine, Metadata

NAMESPACE = "fastkernels_conflicts"
ATTENTION = f"{NAMESPACE}::attention"
CAPTURED = (1, 2, 8, 16, 64)  # rows of the CUDA graphs, as far as buckets fill them
SEEDS = (0, 7)  # two steps a bucket: other inputs, other metadata


def check_vllm(subject: Subject) -> Iterator[Finding]:
    """Every bucket of each kind of arguments, against the task's reference; where a candidate is to blame, the
    reference must pass in the same place."""
    engine = Engine(subject.device)
    calls = [c for c in subject.calls() if c.rows is not None and c.dtype == subject.dtypes[-1]]
    if not calls:
        raise Skip("no case of the task can be redrawn to other sizes")
    if _key(engine, "one version") == _key(engine, "another"):
        text = "vLLM's cache key leaves additional_config out: two versions of a candidate share what was compiled"
        yield Finding(code="VL_ERROR", evidence=Evidence(text=text))
    with _attention(engine) as attention, _stream(subject.device):
        for case in {id(c.case): c.case for c in calls}.values():
            piece = Piece(engine, subject, [c for c in calls if c.case is case], attention)
            found = list(piece.findings(f"{subject.candidate.digest} {subject.rebuild is not None}", subject.build))
            if any(f.code == "VL_ERROR" for f in found):
                excuse = next(piece.findings("reference", subject.reference), None)
                if excuse is not None:
                    raise Skip(f"the task's reference fails here as well: {excuse.evidence.text}")
            yield from found


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What reads the forward context: an operator, or None for Python that Dynamo traces through."""

    operator: str | None
    where: Evidence


class Piece:
    """One case of the task in a served piece of a model."""

    def __init__(self, engine: Engine, subject: Subject, calls: Sequence[Call], attention: Any) -> None:
        self.engine, self.subject, self.attention = engine, subject, attention
        self.calls = sorted(calls, key=lambda c: -(c.rows or 0))
        self.largest = self.calls[0]
        self.layout = Layout.of(subject, self.largest)
        self.buffers = Buffers(self._step(self.largest))

    def findings(self, key: str, build: Callable[[Call], nn.Module]) -> Iterator[Finding]:
        """What goes wrong with the module that ``build`` makes; ``key`` names its version in vLLM's cache."""
        inner, key, most = build(self.largest), f"{key} {self.largest}", self.largest.rows or 0
        config = self.engine.configured(splitting=[ATTENTION], key=key, rows=most)
        reader = self._reader(inner, config)
        if reader is None:
            yield from self._run(inner, config)
            return
        if reader.operator is not None and self.subject.rebuild is not None:  # the mend
            splitting = [ATTENTION, reader.operator]
            yield from self._run(inner, self.engine.configured(splitting=splitting, key=key, rows=most))
            return
        text = "without metadata, as in a capture, it returns other values"
        found = list(self._run(inner, config))
        if not found and self.subject.device.type == "cpu":
            found = [Finding(code="VL_ERROR", bucket=str(self.largest), predicted=True)]
        who = f"{reader.operator} is not in splitting_ops and" if reader.operator is not None else "Python code that"
        for finding in found:
            said = "; ".join(filter(None, (f"{who} reads the forward context", text, finding.evidence.text)))
            evidence = reader.where.model_copy(update={"text": said, "node": reader.operator})
            yield finding.model_copy(update={"code": "VL_SPLIT_OP", "evidence": evidence})

    def _reader(self, inner: nn.Module, config: Any) -> Reader | None:
        """Whether the same tensors give other values under a step's metadata than under none; equal ones under the
        step's metadata again."""
        step, rows = self._step(self.largest), self.largest.rows or 0
        arguments = self.layout.arguments(step.inputs())

        def under(metadata: Metadata | None) -> Any:
            with torch.no_grad(), self.engine.step(config, metadata):
                return copied(inner(*arguments))

        try:
            dummy, real, again = (under(m) for m in (None, self._metadata(rows), self._metadata(rows)))
        except Exception:  # noqa: BLE001 - a candidate may raise anything; the compilation says it again
            return None
        dtype = self.largest.dtype
        if close(dummy, real, self.subject, dtype) is None or close(again, real, self.subject, dtype) is not None:
            return None
        with torch.no_grad(), self.engine.step(config, self._metadata(rows)), Watch(writes=False) as watch:
            inner(*arguments)
        called = [s for s in watch.foreign() if s.op.namespace != NAMESPACE]
        if not called:
            return Reader(operator=None, where=Evidence())
        return Reader(operator=called[0].name, where=called[0].where)

    def _run(self, inner: nn.Module, config: Any) -> Iterator[Finding]:
        """Compiles, captures where there is a device, takes two steps in each bucket, and starts again from the
        cache."""
        module = self._served(inner, config)
        try:
            with torch.no_grad(), self.engine.step(config, None):
                run_compiled(module, self.buffers.placed(self._step(self.largest)))
        except Uncapturable as error:
            raise Skip(f"not captured: {error}") from error
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything; that is the finding
            yield Finding(code="VL_ERROR", bucket=str(self.largest), evidence=frame_of(error))
            return
        graphs = self._graphs()
        try:
            for size in graphs:
                self._capture(module, config, size)
        except RuntimeError as error:
            yield Finding(code="VL_ERROR", bucket=f"{size} rows captured", evidence=where_of(error))
            return
        for call in self.calls:
            padded = min((g for g in graphs if g >= (call.rows or 0)), default=None)
            for seed in SEEDS:
                wrong = self._wrong(module, config, call, padded, seed)
                if wrong is not None:
                    yield Finding(code="VL_ERROR", bucket=str(call), evidence=wrong)
                    break
        again = self._served(inner, config)
        wrong = self._wrong(again, config, self.largest, None, SEEDS[0])
        if wrong is not None and self.engine.from_cache(again):
            text = f"started again from vLLM's compile cache: {wrong.text}"
            yield Finding(code="VL_ERROR", bucket=str(self.largest), evidence=wrong.model_copy(update={"text": text}))

    def _served(self, inner: nn.Module, config: Any) -> nn.Module:
        state = {"inner": inner, "layout": self.layout, "attention": self.attention}
        return self.engine.compiled(Served, config, dynamic=self.layout.dynamic, **state)

    def _graphs(self) -> list[int]:
        """Sizes to capture, from the largest down; none where there are no CUDA graphs."""
        if self.subject.device.type != "cuda":
            return []
        rows = [c.rows or 0 for c in self.calls]
        return [g for g in sorted(CAPTURED, reverse=True) if min(rows) <= g <= max(rows)]

    def _capture(self, module: nn.Module, config: Any, size: int) -> None:
        """A warm-up, then the capture, as vLLM's dummy runs: without metadata."""
        fill = next(c for c in self.calls if (c.rows or 0) <= size)
        inputs = self.buffers.placed(self._step(fill, size=size))
        with torch.no_grad():
            for graph in (None, size):
                with self.engine.step(config, None, graph=graph):
                    module(*inputs)
                torch.cuda.synchronize()

    def _wrong(self, module: nn.Module, config: Any, call: Call, padded: int | None, seed: int) -> Evidence | None:
        """What a step returns that it should not, or the error that it raises; None if all is well."""
        step = self._step(call, size=padded, seed=seed)
        try:
            with torch.no_grad(), self.engine.step(config, self._metadata(step.rows), graph=padded):
                got = copied(module(*self.buffers.placed(step)))
        except Exception as error:  # noqa: BLE001 - a compiled graph may raise anything; that is the finding
            return frame_of(error)
        wrong = step.wrong(got, judge=Judge(self.subject, call))
        if wrong is None:
            return None
        return Evidence(text=f"guards dropped: {wrong}" if padded is None else f"replay of {padded} rows: {wrong}")

    def _step(self, call: Call, *, size: int | None = None, seed: int = 0) -> Step:
        return Step(subject=self.subject, call=call, layout=self.layout, size=size or call.rows or 0, seed=seed)

    def _metadata(self, rows: int) -> Metadata:
        return Metadata.of(rows, self.subject.device)


def _key(engine: Engine, version: str) -> str:
    return str(engine.configured(splitting=[ATTENTION], key=version, rows=1).compute_hash())


@contextlib.contextmanager
def _attention(engine: Engine) -> Iterator[Any]:
    """The operator at which the graph is split. Like vLLM's own it fills the step's rows and no others, and none
    without metadata."""

    def run(x: torch.Tensor) -> torch.Tensor:
        metadata, out = engine.metadata(), torch.zeros_like(x)
        if metadata is not None:
            out[: metadata.num_actual_tokens] = x[: metadata.num_actual_tokens]
        return out

    with torch.library._scoped_library(NAMESPACE, "FRAGMENT") as library:
        library.define("attention(Tensor x) -> Tensor")
        library.impl("attention", run, "CompositeExplicitAutograd")
        library.impl("attention", torch.empty_like, "Meta")
        yield torch.ops.fastkernels_conflicts.attention


def _stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A stream that can be captured; vLLM captures on the current one."""
    return torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else contextlib.nullcontext()
