"""explain: compiles a model on given inputs and says what became of it.

From torch's structured records; ``torch._dynamo.explain`` misses breaks before the first tensor operation."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastkernels.evaluation.breaks import breaks_in, counted, given_up
from fastkernels.patches.dispatch import dispatchers
from fastkernels.runtime.compile_report import CompileReport, GraphReport, RecompileReport
from fastkernels.runtime.lowering import Lowered
from fastkernels.runtime.options import parse
from fastkernels.runtime.parts import ENTRIES
from fastkernels.tasks import by_interface

if TYPE_CHECKING:
    from fastkernels.runtime.backend import Compiled

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
    compare: bool = True,
) -> CompileReport:
    """Compiles ``model``, calls it on the inputs, twice each, and reports graphs, breaks and recompilations.

    Resets Dynamo before and after: what was compiled in this process is compiled again at its next call.

    Args:
        inputs: a tensor, a tuple of arguments, a mapping of keyword arguments, or a list of any of these; a list of
            several batch sizes shows whether the model recompiles over them.
        backend: graphs and operators are reported for ``fastkernels`` only.
        fullgraph, dynamic, mode, options: as for ``torch.compile``; with ``fullgraph`` a break is torch's error.
        compare: count also the kernels that there were without candidates. Compiles the model once more where graphs
            hold operators, once more where they hold inlined candidates, and calls it with each input each time.

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
    from torch.autograd import _profiler_enabled

    from fastkernels.evaluation.fusions import call_each, count_without
    from fastkernels.runtime.backend import recording
    from fastkernels.runtime.cuda_graphs import launches, recordings, skip_reasons

    chosen = dict(options or {})
    if backend == "fastkernels":  # both at once, which torch.compile does not take; and errors before any compilation
        chosen |= {"mode": mode} if mode is not None else {}
        mode = None
        parse(mode, chosen)
    lowered = list(_lowered_in(model))
    copies_before = _copies(lowered)
    calls = inputs if isinstance(inputs, list) else [inputs]
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    asked = chosen.get(
        "triton.cudagraphs", list_mode_options(chosen.get("mode", mode) or "default").get("triton.cudagraphs", False)
    )

    def again(changed: Mapping[str, Any]) -> Callable[[], None]:
        reset()
        run = torch.compile(model, backend=backend, dynamic=dynamic, options={**chosen, **changed})
        return lambda: call_each(run, calls)

    reset()
    clear_compilation_metrics()
    set_compilation_metrics_limit(METRICS_KEPT)
    recorded = replays = None
    try:
        run = torch.compile(
            model, backend=backend, fullgraph=fullgraph, dynamic=dynamic, mode=mode, options={**chosen} or None
        )
        with recording() as graphs, skip_reasons() as skips:
            call_each(run, calls, times=2)  # Python state that changes with each call recompiles at the second
        metrics, broken = get_compilation_metrics(), list(graph_break_reasons)
        results_copied = dict(_copies(lowered) - copies_before)
        if asked and device.type == "cuda":
            recorded = recordings()
            if not _profiler_enabled():
                with launches() as launched:
                    call_each(run, calls)
                (replays,) = launched
        inlined = [_inlined(g, model) for g in graphs]
        counts: list[dict[str, int]] = [{} for _ in graphs]
        if compare and backend == "fastkernels":
            counts = count_without(model, graphs, again, inlined=any(inlined))
    finally:
        set_compilation_metrics_limit(DEFAULT_COMPILATION_METRICS_LIMIT)
        reset()
    files = {inspect.getfile(cls) for cls in candidates_in(model)}
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
                inlined=dict(traced),
                decomposed=g.why_decomposed,
                copied=dict(g.copied),
                partitioned=g.partitioned,
                seconds=g.seconds,
                key=g.key,
                cache=g.cache,
                kernels=g.kernels,
                extern_calls=g.extern_calls,
                **found,
            )
            for g, traced, found in zip(graphs, inlined, counts, strict=True)
        ],
        breaks=counted([*breaks_in(broken, files), *given_up(metrics, files)]),
        recompiles=[
            RecompileReport(
                where=f"{m.co_filename}:{m.co_firstlineno} in {m.co_name}", guard=" ".join(m.recompile_reason.split())
            )
            for m in metrics
            if m.recompile_reason
        ],
        cudagraph_skips=sorted({*(m.cudagraph_skip_reason for m in metrics), *skips, *uncapturable} - {None}),
        recordings=recorded,
        replays=replays,
        results_copied=results_copied,
        seconds={
            "total": sum((m.duration_us or 0) for m in metrics) / 1e6,
            **{phase: sum(getattr(m, field) or 0 for m in metrics) / 1e6 for phase, field in PHASES_US.items()},
        },
    )


def _inlined(graph: Compiled, model: nn.Module) -> Counter[str]:
    """Entries of candidates in the model whose code was traced into ``graph``, with how often."""
    codes = {
        getattr(cls, method).__code__: f"{cls.__module__}.{cls.__qualname__}.{method}"
        for cls in set(candidates_in(model))
        for method in ENTRIES
        if hasattr(cls, method)
    }
    return Counter(codes[code] for code in graph.traced.elements() if code in codes)


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
