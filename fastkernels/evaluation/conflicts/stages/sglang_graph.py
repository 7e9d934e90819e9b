"""sglang: a piece of a model in SGLang's own graph runners, sizes from the largest down into one pool, with padding.

On a device its CUDA graphs, plain, over a compiled forward, and piecewise; without one what it offers on a CPU, a
compilation for each size with constants folded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.conflicts.compare import Judge, copied
from fastkernels.evaluation.conflicts.graphed import where_of
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.served import Buffers, Layout, Served, Step
from fastkernels.evaluation.conflicts.sglang_engine import Runner, runners_of
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject

CAPTURED = (1, 8, 64)  # rows, as far as buckets fill them
SEEDS = (0, 7)  # two steps a bucket


def check_sglang(subject: Subject) -> Iterator[Finding]:
    """Every bucket of the first case, against the task's reference, which must pass in the same runner."""
    runners = runners_of(subject.device)
    calls = [c for c in subject.calls(cases=1) if c.rows is not None and c.dtype == subject.dtypes[-1]]
    if not calls:
        raise Skip("no case of the task can be redrawn to other sizes")
    piece = Piece(subject, sorted(calls, key=lambda c: -(c.rows or 0)))
    with torch.library._scoped_library("fastkernels_conflicts", "FRAGMENT") as library, torch.no_grad():
        library.define("attention(Tensor x) -> Tensor")
        library.impl("attention", torch.clone, "CompositeExplicitAutograd")
        library.impl("attention", torch.empty_like, "Meta")
        for name, make in runners.items():
            found = list(piece.findings(make, subject.build))
            excuse = next(piece.findings(make, subject.reference), None) if found else None
            if excuse is not None:
                raise Skip(f"{name}: the task's reference fails here as well: {excuse.evidence.text}")
            for finding in found:
                evidence = finding.evidence.model_copy(update={"text": f"{name}: {finding.evidence.text}"})
                yield finding.model_copy(update={"evidence": evidence})


class Piece:
    """One case of the task in a served piece of a model."""

    def __init__(self, subject: Subject, calls: list[Call]) -> None:
        self.subject, self.calls = subject, calls
        self.layout = Layout.of(subject, calls[0])
        rows = [c.rows or 0 for c in calls]
        self.sizes = sorted({g for g in CAPTURED if min(rows) <= g < max(rows)} | {max(rows)}, reverse=True)

    def findings(self, make: Callable[..., Runner], build: Callable[[Call], nn.Module]) -> Iterator[Finding]:
        """What goes wrong in a runner with the module that ``build`` makes."""
        torch._dynamo.reset()
        buffers = Buffers(self._step(self.calls[0]))
        attention: Any = torch.ops.fastkernels_conflicts.attention
        model = Served(inner=build(self.calls[0]), layout=self.layout, attention=attention)
        runner = make(model, self.sizes, self.layout.dynamic)
        for size in self.sizes:
            fill = next(c for c in self.calls if (c.rows or 0) <= size)
            try:
                runner.capture(size, buffers.placed(self._step(fill, size=size)))
            except Exception as error:  # noqa: BLE001 - a compiler or a capture may raise anything; it is the finding
                yield Finding(code="SG_ERROR", bucket=f"{size} rows captured", evidence=where_of(error))
                return
        for call in self.calls:
            for seed in SEEDS:
                wrong = self._wrong(runner, buffers, call, seed)
                if wrong is not None:
                    yield Finding(code="SG_ERROR", bucket=str(call), evidence=wrong)
                    break

    def _wrong(self, runner: Runner, buffers: Buffers, call: Call, seed: int) -> Evidence | None:
        """What a step returns that it should not, or the error that it raises; None if all is well."""
        step = self._step(call, size=min(s for s in self.sizes if s >= (call.rows or 0)), seed=seed)
        try:
            got = copied(runner.replay(step.size, buffers.placed(step)))
        except Exception as error:  # noqa: BLE001 - as in a capture
            return frame_of(error)
        wrong = step.wrong(got, judge=Judge(self.subject, call))
        return None if wrong is None else Evidence(text=f"{step.rows} rows in a graph of {step.size}: {wrong}")

    def _step(self, call: Call, *, size: int | None = None, seed: int = 0) -> Step:
        return Step(subject=self.subject, call=call, layout=self.layout, size=size or call.rows or 0, seed=seed)
