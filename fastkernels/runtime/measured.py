"""``select="measured"``: an operator stays in a graph only where the graph is faster with it than with its reference.

Whole graphs are timed, since what Inductor fuses around a reference is what an operator has to beat. Once for each
graph, set of shapes and device; the decision is kept beside Inductor's cache."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from fastkernels.runtime.backend import build
from fastkernels.runtime.cache_key import content_key
from fastkernels.runtime.injected import count
from fastkernels.runtime.options import Options

ROUNDS = 11
BLOCK_SECONDS = 0.01  # one timing: as many calls as take this long


def losing(
    graph: fx.GraphModule, inputs: Sequence[Any], options: Options, *, excluded: Collection[str]
) -> dict[str, str]:
    """Operators of ``graph`` that make it slower, by name, with the times; ``graph`` is left as it is.

    Compiles the graph with each operator alone and with none; what wins alone must also win together. A graph with
    collectives is not measured, for other ranks would wait; nor one with graphs inside, which no copy can own.
    """
    names = sorted(name for name in count(graph) if name not in excluded)
    if not names or _communicates(graph) or any(isinstance(m, fx.GraphModule) for m in graph.children()):
        return {}
    kept = _file(graph, inputs, options, excluded)
    if kept.is_file():
        return json.loads(kept.read_text())
    call = [_argument(value) for value in inputs]

    def without(absent: Collection[str]) -> Callable[[], Any]:
        run, _ = build(_copy(graph), inputs, options, out=dict.fromkeys([*excluded, *absent], "measured"))
        return lambda: run(*call)

    with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=_cuda(call)):
        none, lost = without(names), {}
        for name in names:
            with_it, without_it = compare(without([n for n in names if n != name]), none, synchronise=bool(_cuda(call)))
            if with_it > without_it:
                lost[name] = _told(with_it, without_it)
        if len(names) - len(lost) > 1:
            with_them, without_them = compare(without(lost), none, synchronise=bool(_cuda(call)))
            if with_them > without_them:
                lost |= {n: f"together: {_told(with_them, without_them)}" for n in names if n not in lost}
    kept.parent.mkdir(parents=True, exist_ok=True)
    written = kept.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(lost))
    written.replace(kept)
    return lost


def compare(first: Callable[[], Any], second: Callable[[], Any], *, synchronise: bool) -> tuple[float, float]:
    """Median seconds of a call of each, in blocks that alternate so that a drift of the clock hits both."""

    def block(run: Callable[[], Any], calls: int) -> float:
        if synchronise:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            run()
        if synchronise:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls

    for _ in range(3):  # CUDA graphs are recorded at the second call
        block(first, 1), block(second, 1)
    calls = max(1, round(BLOCK_SECONDS / max(block(first, 1), block(second, 1), 1e-9)))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(ROUNDS):
        for which in (0, 1) if i % 2 else (1, 0):
            times[which].append(block((first, second)[which], calls))
    return statistics.median(times[0]), statistics.median(times[1])


def _told(with_it: float, without_it: float) -> str:
    return f"measured: {with_it * 1e6:.1f} us with it, {without_it * 1e6:.1f} us with the reference"


def _copy(graph: fx.GraphModule) -> fx.GraphModule:
    """The same graph for Inductor to take over; tensors are shared."""
    made = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    made.meta = dict(graph.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(graph, name):
            setattr(made, name, getattr(graph, name))
    for mine, theirs in zip(made.graph.nodes, graph.graph.nodes, strict=True):
        if hasattr(theirs, "_dynamo_source"):
            mine._dynamo_source = theirs._dynamo_source
    return made


def _argument(value: Any) -> Any:
    """A value to call with: numbers for symbols, and copies of what the model might write to."""
    if isinstance(value, torch.SymInt):
        return int(value.node.hint)
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return value


def _cuda(call: Sequence[Any]) -> list[int]:
    return sorted({v.device.index for v in call if isinstance(v, torch.Tensor) and v.device.type == "cuda"})


def _communicates(graph: fx.GraphModule) -> bool:
    targets = (n.target for n in graph.graph.nodes if n.op == "call_function")
    return any("c10d" in getattr(t, "namespace", "") or "c10d" in str(t) for t in targets)


def _file(graph: fx.GraphModule, inputs: Sequence[Any], options: Options, excluded: Collection[str]) -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    shapes = [(tuple(map(_argument, v.shape)), str(v.dtype), str(v.device)) for v in inputs if hasattr(v, "shape")]
    devices = sorted({torch.cuda.get_device_name(i) for i in _cuda(inputs)}) or [f"cpu x{torch.get_num_threads()}"]
    settings: Mapping[str, Any] = {"mode": options.mode, **options.inductor}
    content = (content_key(graph), graph.code, shapes, devices, sorted(excluded), sorted(map(str, settings.items())))
    name = hashlib.sha256(repr((content, torch.__version__)).encode()).hexdigest()[:24]
    return Path(cache_dir()) / "fastkernels_measured" / f"{name}.json"
