"""Llama-3.1-8B shape, bf16, decode on one GPU: HF eager, HF compiled with a static cache, and shipped candidates.
All arms share one process and one set of weights, and take turns, ABBA. Every arm decodes the same number of tokens
after a prefill of the same length; compile seconds are those of an arm's first step.

    python -m benchmarks.llama_compiled --out benchmarks/results/NAME.json [--arms ...] [--batches 1 64]
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bootstrap import bootstrap_ratio
from benchmarks.llama_eager import STEPS, build

TOKENS = 512
# Name: (patched, torch.compile's arguments or None, static cache)
ARMS: dict[str, tuple[bool, dict[str, Any] | None, bool]] = {
    "eager": (False, None, False),
    "compiled": (False, {}, True),
    "reduce-overhead": (False, {"mode": "reduce-overhead"}, True),
    "shipped eager": (True, None, False),
    "shipped fastkernels": (True, {"backend": "fastkernels", "mode": "reduce-overhead"}, True),
    "shipped inductor": (True, {"mode": "reduce-overhead"}, True),
}


def runner(model: Any, compiled: Callable[..., Any], batch: int, *, static: bool) -> Callable[[], float]:
    """A function that prefills, decodes ``STEPS`` tokens after two, and returns the milliseconds of a step."""
    import torch
    from transformers import DynamicCache, StaticCache

    ids = torch.randint(0, 128000, (batch, TOKENS), generator=torch.Generator().manual_seed(1)).cuda()

    def step(token: Any, cache: Any) -> Any:
        if static:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)

    cache = StaticCache(config=model.config, max_cache_len=1024) if static else None

    def run() -> float:
        nonlocal cache
        if static:
            cache.reset()
        else:
            cache = DynamicCache(config=model.config)
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        for _ in range(2):
            token = step(token, cache).clone()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            token = step(token, cache).clone()
        torch.cuda.synchronize()
        run.tokens = token.flatten().tolist()  # type: ignore[attr-defined] # for comparing arms
        return (time.perf_counter() - started) * 1e3 / STEPS

    return run


def main() -> None:
    import torch

    import fastkernels

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=[a for a in ARMS if a != "shipped inductor"], choices=ARMS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("high")
    plain = build(args.layers)
    patched = copy.deepcopy(plain, {id(t): t for t in (*plain.parameters(), *plain.buffers())})
    handle = fastkernels.patch(patched, "shipped")
    record: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": []}
    for batch in args.batches:
        runs = {}
        for name in args.arms:
            is_patched, how, static = ARMS[name]
            model = patched if is_patched else plain
            compiled = model if how is None else torch.compile(model, fullgraph=True, dynamic=False, **how)
            runs[name] = runner(model, compiled, batch, static=static)
            started = time.perf_counter()
            runs[name]()
            print(f"batch {batch:2} {name:20} first run {time.perf_counter() - started:6.1f} s", flush=True)
            record[f"first {name} {batch}"] = time.perf_counter() - started
            runs[name]()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(args.rounds):
            for name in runs if turn % 2 == 0 else reversed(runs):
                times[name].append(runs[name]())
        for name, values in times.items():
            low, ratio, high = bootstrap_ratio(times[args.arms[0]], values)
            same = runs[name].tokens == runs[args.arms[0]].tokens
            ms = statistics.median(values)
            print(
                f"batch {batch:2} {name:20} {ms:7.2f} ms  {ratio:6.3f}x [{low:.3f}, {high:.3f}]  last tokens "
                f"{'equal' if same else 'differ'}",
                flush=True,
            )
            record["rows"].append(
                {"batch": batch, "arm": name, "ms": ms, "x": ratio, "low": low, "high": high, "times": values}
            )
    record["calls"] = {s.task: s.calls for s in handle.report.applied if s.inside is None}
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
