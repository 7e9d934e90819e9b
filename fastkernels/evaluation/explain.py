"""explain: compiles a model on given inputs and says what became of it.

From torch's structured records; ``torch._dynamo.explain`` misses breaks before the first tensor operation."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastkernels.patches.dispatch import dispatchers
from fastkernels.runtime.compile_report import BreakReport, CompileReport, GraphReport, RecompileReport
from fastkernels.runtime.lowering import Lowered
from fastkernels.runtime.options import parse
from fastkernels.runtime.parts import ENTRIES
from fastkernels.tasks import by_interface

METRICS_KEPT = 10_000  # torch keeps the last 64, which a model of many frames outruns
PHASES_US = {
    "dynamo": "dynamo_cumulative_compile_time_us",
    "aot_autograd": "aot_autograd_cumulative_compile_time_us",
    "inductor": "inductor_cumulative_compile_time_us",
    "codegen": "inductor_code_gen_cumulative_compile_time_us",
}


def explain(
    model: nn.Module,
    inputs: Any,
    *,
    backend: str = "fastkernels",
    fullgraph: bool = False,
    dynamic: bool | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> CompileReport:
    """Compiles ``model``, calls it on the inputs, twice each, and reports graphs, breaks and recompilations.

    Resets Dynamo before and after: what was compiled in this process is compiled again at its next call.

    Args:
        inputs: a tensor, a tuple of arguments, a mapping of keyword arguments, or a list of any of these; a list of
            several batch sizes shows whether the model recompiles over them.
        backend: graphs and operators are reported for ``fastkernels`` only.
        fullgraph, dynamic, mode, options: as for ``torch.compile``; with ``fullgraph`` a break is torch's error.

    Raises:
        BackendError: an option that the backend does not know.

    >>> report = explain(torch.nn.Linear(4, 4), [torch.ones(2, 4), torch.ones(3, 4)], options={"batch_sizes": [2, 3]})
    >>> len(report.graphs), report.breaks, report.recompiles
    (1, [], [])
    """
    from torch._dynamo import reset
    from torch._dynamo.utils import (
        DEFAULT_COMPILATION_METRICS_LIMIT,
        clear_compilation_metrics,
        get_compilation_metrics,
        graph_break_reasons,
        set_compilation_metrics_limit,
    )
    from torch._inductor import list_mode_options

    from fastkernels.runtime.backend import recording

    chosen = dict(options or {})
    if backend == "fastkernels":  # both at once, which torch.compile does not take; and errors before any compilation
        chosen |= {"mode": mode} if mode is not None else {}
        mode = None
        parse(mode, chosen)
    lowered = list(_lowered_in(model))
    copies_before = _copies(lowered)
    calls = inputs if isinstance(inputs, list) else [inputs]
    reset()
    clear_compilation_metrics()
    set_compilation_metrics_limit(METRICS_KEPT)
    try:
        compiled = torch.compile(
            model, backend=backend, fullgraph=fullgraph, dynamic=dynamic, mode=mode, options=chosen or None
        )
        with recording() as graphs, torch.no_grad():
            for call in calls:
                for _ in range(2):  # Python state that changes with each call recompiles at the second
                    _run(compiled, call)
        metrics, broken = get_compilation_metrics(), list(graph_break_reasons)
    finally:
        set_compilation_metrics_limit(DEFAULT_COMPILATION_METRICS_LIMIT)
        reset()
    classes = set(candidates_in(model))
    codes = {
        getattr(cls, method).__code__: f"{cls.__module__}.{cls.__qualname__}.{method}"
        for cls in classes
        for method in ENTRIES
        if hasattr(cls, method)
    }
    files = {inspect.getfile(cls) for cls in classes}
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    asked = list_mode_options(chosen.get("mode", mode) or "default").get("triton.cudagraphs", False)
    # Torch has no word for it where nothing is on a CUDA device.
    uncapturable = (
        {f"the model is on {device}, CUDA graphs need a CUDA device"} if asked and device.type != "cuda" else set()
    )
    return CompileReport(
        model=type(model).__name__,
        torch=torch.__version__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        calls=2 * len(calls),
        graphs=[
            GraphReport(
                present=dict(g.present),
                lost=dict(g.given - g.present - g.decomposed),
                inlined=dict(Counter(codes[code] for code in g.traced.elements() if code in codes)),
                decomposed=g.why_decomposed,
                copied=dict(g.copied),
                partitioned=g.partitioned,
                seconds=g.seconds,
                key=g.key,
                cache=g.cache,
            )
            for g in graphs
        ],
        breaks=_counted([*_breaks(broken, files), *_given_up(metrics, files)]),
        recompiles=[
            RecompileReport(
                where=f"{m.co_filename}:{m.co_firstlineno} in {m.co_name}", guard=" ".join(m.recompile_reason.split())
            )
            for m in metrics
            if m.recompile_reason
        ],
        cudagraph_skips=sorted({m.cudagraph_skip_reason for m in metrics if m.cudagraph_skip_reason} | uncapturable),
        results_copied=dict(_copies(lowered) - copies_before),
        seconds={
            "total": sum((m.duration_us or 0) for m in metrics) / 1e6,
            **{phase: sum(getattr(m, field) or 0 for m in metrics) / 1e6 for phase, field in PHASES_US.items()},
        },
    )


def _run(compiled: Any, call: Any) -> None:
    if isinstance(call, Mapping):
        compiled(**call)
    else:
        compiled(*(call if isinstance(call, (tuple, Sequence)) else (call,)))


def candidates_in(model: nn.Module) -> Iterator[type[nn.Module]]:
    """Classes of the candidates that stand in a patched model, those inside others too."""
    for _, dispatcher in dispatchers(model):
        outer = type(dispatcher.implementation)
        if outer not in by_interface():  # a task's reference that holds candidates
            yield outer
        for _, candidate in dispatcher.implementation.__dict__.get("placed", ()):
            yield candidate.cls


def _lowered_in(model: nn.Module) -> Iterator[Lowered]:
    for _, dispatcher in dispatchers(model):
        yield from dispatcher.binding.lowered.values()


def _copies(lowered: Sequence[Lowered]) -> Counter[str]:
    ops = {outcome.op.name: outcome.op for outcome in lowered if outcome.op is not None}
    return Counter({f"{name}: {reason}": n for name, op in ops.items() for reason, n in op.copies.items()})


def _counted(breaks: Sequence[BreakReport]) -> list[BreakReport]:
    """Breaks of one line for one reason as one; each graph that ends there tells of it."""
    times = Counter((b.where, b.reason, b.mend, b.eager) for b in breaks)
    return [BreakReport(where=w, reason=r, mend=m, eager=e, times=n) for (w, r, m, e), n in times.items()]


def _breaks(reasons: Sequence[Any], candidates: set[str]) -> Iterator[BreakReport]:
    torch_folder = str(Path(torch.__file__).parent)
    for found in reasons:
        frames = list(found.user_stack)
        theirs = [f for f in frames if f.filename in candidates]
        frame = (theirs or [f for f in frames if not f.filename.startswith(torch_folder)] or frames or [None])[-1]
        where = "unknown" if frame is None else f"{frame.filename}:{frame.lineno} in {frame.name}"
        yield _told(found.reason, where, in_candidate=bool(theirs))


def _given_up(metrics: Sequence[Any], candidates: set[str]) -> Iterator[BreakReport]:
    """Functions that Dynamo failed on, the limit of recompilations among the causes."""
    named = {_frame(m): m for m in reversed(metrics) if m.co_filename}
    for m in metrics:
        if m.fail_type is not None:
            known = named.get(_frame(m), m)  # past the limit of recompilations torch names no code
            file = m.fail_user_frame_filename or known.co_filename
            where = f"{file}:{m.fail_user_frame_lineno or known.co_firstlineno}"
            text = m.fail_reason or m.fail_type
            yield _told(text, where, in_candidate=file in candidates, eager=known.co_name or "a function")


def _frame(metrics: Any) -> str:
    return (metrics.compile_id or "").partition("/")[0]


def _told(text: str, where: str, *, in_candidate: bool, eager: str = "") -> BreakReport:
    """The parts of torch's text on a break: what, why, and a hint."""
    lines = [line.strip().removeprefix("Unsupported: ") for line in text.splitlines() if line.strip()]
    why = [line for line in lines if line.startswith("Explanation:")]
    hints = [line.removeprefix("Hint:").strip() for line in lines if line.startswith("Hint:")]
    mend = (hints or ["Rewrite this line with tensor operations only, or move it out of forward."])[0]
    if in_candidate:
        mend = "Patch with lowering='opaque' or 'auto': the candidate becomes one operator."
    return BreakReport(where=where, reason=" ".join([*lines[:1], *why[:1]]), mend=mend, eager=eager)
