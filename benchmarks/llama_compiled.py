"""Llama-3.1-8B shape, bf16, decode on one GPU: HF eager, HF compiled with a static cache, and shipped candidates
through ``backend="fastkernels"``.

Each arm is a process of its own with its own model and its own empty compile caches, held at the same time on the
same GPU; the parent lets them run in turn, ABBA. Compile seconds are those of an arm's first call of a workload, one
arm at a time. A patched arm that does not show every candidate in a profile of its own steps ends the run.

    python -m benchmarks.llama_compiled --out benchmarks/results/NAME.json [--arms ...] [--workloads ...]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.about import about
from benchmarks.llama_eager import STEPS, build

TOKENS, CACHE = 512, 1024
WORKLOADS = {"decode batch 1": (1, TOKENS), "decode batch 64": (64, TOKENS), "prefill 1x2048": (1, 2048)}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """``lowering`` of shipped candidates, or None for the model as it is; arguments of torch.compile, or None."""

    lowering: str | None = None
    how: dict[str, Any] | None = field(default_factory=dict)


CAPTURED = {"mode": "reduce-overhead"}
ARMS = {
    "eager": Arm(how=None),
    "compiled": Arm(),
    "reduce-overhead": Arm(how=CAPTURED),
    "null": Arm(how=CAPTURED),
    "patched eager": Arm(lowering="auto", how=None),
    "fastkernels": Arm(lowering="auto", how={"backend": "fastkernels", **CAPTURED}),
    "inductor": Arm(lowering="auto", how=CAPTURED),
    "opaque": Arm(lowering="opaque", how={"backend": "fastkernels", **CAPTURED}),
    "measured": Arm(
        lowering="opaque",
        how={"backend": "fastkernels", "options": {"select": "measured", **CAPTURED}},
    ),
}


def serve(name: str, layers: int, pipe: multiprocessing.connection.Connection) -> None:
    """One arm's process: answers ``(verb, workload)`` until None comes."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:12])
    caches = tempfile.TemporaryDirectory()
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{caches.name}/inductor", "TRITON_CACHE_DIR": f"{caches.name}/triton"}
    import torch

    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("high")
    model, arm = build(layers), ARMS[name]
    handle = None
    if arm.lowering is not None:
        import fastkernels

        handle = fastkernels.patch(model, "shipped", lowering=arm.lowering)
    compiled = model if arm.how is None else torch.compile(model, fullgraph=True, dynamic=False, **arm.how)
    pipe.send(handle and {c.task: (c.state, c.sites) for c in handle.report.candidates if c.sites})
    runs: dict[str, Any] = {}
    while (order := pipe.recv()) is not None:
        verb, workload = order
        if verb == "first":
            runs[workload] = _runner(model, compiled, *WORKLOADS[workload], static=arm.how is not None)
            pipe.send(_first(runs[workload], bool(arm.how) and arm.how.get("backend") == "fastkernels"))
        elif verb == "seen":
            pipe.send(_seen(handle, runs[workload], arm.lowering))
        elif verb == "done":
            del runs[workload]
            torch.compiler.reset()
            torch.cuda.empty_cache()
            pipe.send(None)
        else:
            pipe.send(runs[workload]())


def _first(run: Any, ours: bool) -> dict[str, Any]:
    """Seconds of the first runs, and what the backend recorded."""
    from torch._dynamo.utils import clear_compilation_metrics, get_compilation_metrics

    clear_compilation_metrics()
    facts: dict[str, Any] = {}
    if ours:
        from fastkernels.runtime.backend import recording

        with recording() as graphs:
            facts["seconds"] = _timed(run)
        facts["decomposed"] = [g.why_decomposed for g in graphs]
        facts["present"] = [dict(g.present) for g in graphs]
    else:
        facts["seconds"] = _timed(run)
    metrics = get_compilation_metrics()
    facts["compile_seconds"] = sum(m.duration_us or 0 for m in metrics) / 1e6
    facts["graphs"] = len([m for m in metrics if m.compile_id and m.fail_type is None])
    facts["skips"] = sorted({m.cudagraph_skip_reason for m in metrics if m.cudagraph_skip_reason})
    run()
    return facts


def _timed(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _seen(handle: Any, run: Any, lowering: str | None) -> dict[str, Any] | None:
    """What of each candidate showed in a window of compiled steps.

    Raises:
        RuntimeError: attention ran without a kernel of its candidate.
    """
    if handle is None:
        return None
    with handle.observe() as window:
        run.steps()
    tasks = {t: e for t, e in window.result.tasks.items() if e.state == "applied"}
    if lowering == "auto" and tasks["attention_block"].how not in ("kernel", "counter"):
        raise RuntimeError(f"the compiled steps ran without the candidates: {tasks}")
    return {t: (e.how, e.kernels, e.ops) for t, e in tasks.items()}


def _runner(model: Any, compiled: Any, batch: int, tokens: int, *, static: bool) -> Any:
    """A function that runs the workload once; returns milliseconds (per step, for decode) and its last tokens."""
    import torch
    from transformers import DynamicCache, StaticCache

    ids = torch.randint(0, 128000, (batch, tokens), generator=torch.Generator().manual_seed(1)).cuda()
    cache = StaticCache(config=model.config, max_cache_len=CACHE) if static else None

    def call(token: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(token, **kwargs).logits[:, -1].argmax(-1, keepdim=True).clone()

    def prefill() -> tuple[float, list[int]]:
        torch.cuda.synchronize()
        started = time.perf_counter()
        token = call(ids, use_cache=False, logits_to_keep=1)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3, token.flatten().tolist()

    def steps() -> None:
        for _ in range(2):
            call(ids[:, :1], past_key_values=cache)

    def decode() -> tuple[float, list[int]]:
        nonlocal cache
        if cache is not None and static:
            cache.reset()
        else:
            cache = DynamicCache(config=model.config)
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        for _ in range(2):
            token = call(token, past_key_values=cache)
        torch.cuda.empty_cache()  # the arms share one GPU
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            token = call(token, past_key_values=cache)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3 / STEPS, token.flatten().tolist()

    run = prefill if tokens > CACHE else decode
    run.steps = prefill if tokens > CACHE else steps  # type: ignore[attr-defined]
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arms", nargs="+", default=["eager", "compiled", "reduce-overhead", "fastkernels"], choices=ARMS
    )
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS)[:2], choices=WORKLOADS)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    record: dict[str, Any] = {"candidates": {}, "first": {}, "seen": {}, "rows": [], "times_ms": {}}
    for name in args.arms:
        pipes[name], child = context.Pipe()
        context.Process(target=serve, args=(name, args.layers, child), daemon=True).start()
        child.close()  # so that an arm that died is an EOFError here
    for name in args.arms:
        record["candidates"][name] = pipes[name].recv()

    def ask(name: str, *order: Any) -> Any:
        pipes[name].send(order)
        return pipes[name].recv()

    for workload in args.workloads:
        for name in args.arms:
            first = record["first"][f"{workload}, {name}"] = ask(name, "first", workload)
            print(workload, name, json.dumps(first), flush=True)
        times: dict[str, list[float]] = {name: [] for name in args.arms}
        tokens: dict[str, list[int]] = {}
        for turn in range(args.rounds):
            for name in args.arms if turn % 2 == 0 else reversed(args.arms):
                ms, tokens[name] = ask(name, "run", workload)
                times[name].append(ms)
        for name in args.arms:
            seen = record["seen"][f"{workload}, {name}"] = ask(name, "seen", workload)
            print(_row(workload, name, args.arms[0], times, tokens, record), seen or "", flush=True)
        for name in args.arms:
            ask(name, "done", workload)
    if args.out is not None:
        args.out.write_text(json.dumps(about() | record, indent=1))
    for pipe in pipes.values():
        pipe.send(None)


def _row(workload: str, name: str, base: str, times: Any, tokens: Any, record: dict[str, Any]) -> str:
    from fastkernels.evaluation.statistics import median_ratio  # not at the top: it would bring torch to the arms early

    ms, same = statistics.median(times[name]), sum(a == b for a, b in zip(tokens[name], tokens[base], strict=True))
    ratios = {}
    for other in times:
        x = median_ratio(times[other], times[name])
        ratios[other] = (x.value, x.low, x.high)
    record["rows"].append({"workload": workload, "arm": name, "ms": ms, "x_over": ratios, "same_last_tokens": same})
    record["times_ms"][f"{workload}, {name}"] = times[name]
    over = "  ".join(f"{r:.3f}x [{low:.3f}, {high:.3f}] over {o}" for o, (r, low, high) in ratios.items() if o != name)
    return f"{workload:16} {name:16} {ms:7.2f} ms  {over}  {same}/{len(tokens[name])} last tokens as {base}"


if __name__ == "__main__":
    main()
