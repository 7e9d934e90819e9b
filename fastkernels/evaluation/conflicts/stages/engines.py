"""vllm and sglang: compiled and captured the way the engines do it, where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
import torch._dynamo

from fastkernels.evaluation.conflicts.capture import Uncapturable, run_compiled
from fastkernels.evaluation.conflicts.compare import Judge
from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Subject, leading, tensors


def check_vllm(subject: Subject) -> Iterator[Finding]:
    """One compilation with a dynamic batch whose guards are dropped, then every bucket through it."""
    _need("vllm")
    for case in subject.representatives:
        calls = [
            c for c in subject.calls() if c.case is case and c.dtype == subject.dtypes[-1] and c.rows not in (None, 1)
        ]
        if not calls:
            continue
        torch._dynamo.reset()
        function = torch.compile(
            subject.build(calls[0]), fullgraph=True,
            options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
        )  # fmt: skip
        for call in sorted(calls, key=lambda c: -(c.rows or 0)):
            arguments = subject.draw(call)
            for t in tensors(arguments):
                if t.dim() and t.shape[0] == leading(arguments):
                    torch._dynamo.mark_dynamic(t, 0)
            try:
                with torch.no_grad():
                    wrong = Judge(subject, call).wrong(run_compiled(function, arguments))
            except Uncapturable as error:
                raise Skip(f"not captured: {error}") from error
            except Exception as error:  # noqa: BLE001 - a compiler may raise anything; that is the finding
                yield Finding(code="VL_ERROR", bucket=str(call), evidence=frame_of(error))
                break
            if wrong is not None:
                yield Finding(code="VL_ERROR", bucket=str(call), evidence=Evidence(text=f"guards dropped: {wrong}"))


def check_sglang(subject: Subject) -> Iterator[Finding]:
    """Every bucket captured from the largest down into one pool, then replayed."""
    _need("sglang")
    need_cuda(subject)
    pool = torch.cuda.graph_pool_handle()
    calls = sorted((c for c in subject.calls(cases=1) if c.dtype == subject.dtypes[-1]), key=lambda c: -(c.rows or 0))
    module = subject.build(calls[0])
    try:
        graphs = [(c, Graphed(module, subject.draw(c), pool=pool)) for c in calls]
    except RuntimeError as error:
        yield Finding(code="SG_ERROR", bucket=str(calls[0]), evidence=frame_of(error))
        return
    for call, graphed in graphs:
        wrong = Judge(subject, call).wrong(graphed.replay(subject.draw(call, seed=7)), seed=7)
        if wrong is not None:
            yield Finding(code="SG_ERROR", bucket=str(call), evidence=Evidence(text=wrong))


def _need(engine: str) -> None:
    if importlib.util.find_spec(engine) is None:
        raise Skip(f"{engine} is not installed")
