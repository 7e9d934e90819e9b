"""Llama-3.1-8B shape, bf16, eager, on one GPU: HF eager, identity candidates, shipped candidates and Liger.

Each arm is a process of its own with its own model (Liger writes to module globals), held at the same time on the
same GPU; the parent lets them run in turn, ABBA, so drift falls on all alike.

    python -m benchmarks.llama_eager --out benchmarks/results/NAME.json [--arms eager null shipped liger]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import statistics
import time
from typing import Any

from benchmarks.about import about

STEPS = 24
WORKLOADS = {  # name: (batch, tokens, tokens more in each run; None for prefill)
    "prefill 1x2048": (1, 2048, None),
    "prefill 8x2048": (8, 2048, None),
    "decode batch 1": (1, 512, 0),
    "decode batch 64": (64, 512, 0),
    # As in serving: no step of any run sees a cache length that an earlier one has warmed up.
    "decode batch 1, new lengths": (1, 600, STEPS + 4),
    "decode batch 64, new lengths": (64, 600, STEPS + 4),
}
ARMS = ("eager", "null", "shipped", "liger")


def build(layers: int) -> Any:
    """The model with seeded random weights on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def arm(name: str, layers: int, pipe: multiprocessing.connection.Connection) -> None:
    """One arm's process: builds, patches, then runs the blocks it is asked for."""
    import torch

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:8])  # the same cores for every arm
    torch.set_grad_enabled(False)
    model = build(layers)
    facts: dict[str, Any] = {"arm": name}
    if name in ("null", "shipped"):
        import fastkernels

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        handle = fastkernels.patch(model, "identity" if name == "null" else "shipped")
        torch.cuda.synchronize()
        facts["patch_seconds"] = time.perf_counter() - started
        facts["extra_memory_share"] = (torch.cuda.memory_allocated() - before) / before
        facts["peak_memory_share"] = (torch.cuda.max_memory_allocated() - before) / before
        facts["states"] = dict(handle.report.count())
        facts["candidates"] = {c.task: (c.state, c.sites, c.reason) for c in handle.report.candidates if c.sites}
    elif name == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    pipe.send(facts)
    gc.collect()
    gc.freeze()  # an arm that imported more would pay more for every collection
    runs = {w: _runner(model, *shape) for w, shape in WORKLOADS.items()}
    while (order := pipe.recv()) is not None:
        workload, repeats = order
        if workload == "done":
            gc.collect()
            torch.cuda.empty_cache()  # the arms share one GPU
            pipe.send(None)
        elif workload == "logits":
            pipe.send(_fingerprint(model))
        elif workload == "calls":
            total = {}
            if name in ("null", "shipped"):
                for s in handle.report.applied:
                    total[s.task] = total.get(s.task, 0) + s.calls
            pipe.send(total)
        else:
            pipe.send([runs[workload]() for _ in range(repeats)])


def _runner(model: Any, batch: int, tokens: int, more: int | None) -> Any:
    """A function that runs the workload once and returns its milliseconds, per step for decode."""
    import torch
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 128000, (batch, tokens + 24 * (more or 0)), generator=generator).cuda()
    lengths = itertools.count(tokens, more or 0)

    def prefill() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        model(ids)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3

    def decode() -> float:
        cache = DynamicCache(config=model.config)
        token = (
            model(ids[:, : next(lengths)], past_key_values=cache, logits_to_keep=1)
            .logits[:, -1]
            .argmax(-1, keepdim=True)
        )
        for _ in range(2):
            token = model(token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            token = model(token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3 / STEPS

    return prefill if more is None else decode


def _fingerprint(model: Any) -> Any:
    """Logits of the last 256 of 512 positions in float32, for comparing arms."""
    import torch

    ids = torch.randint(0, 128000, (1, 512), generator=torch.Generator().manual_seed(2)).cuda()
    return model(ids, logits_to_keep=256).logits[0].float().cpu().numpy()


def agreement(want: Any, got: Any) -> dict[str, float]:
    """Argmax agreement and mean KL of one arm's logits against the eager arm's."""
    import torch

    want, got = torch.from_numpy(want), torch.from_numpy(got)
    p, q = want.log_softmax(-1), got.log_softmax(-1)
    return {
        "argmax": (want.argmax(-1) == got.argmax(-1)).float().mean().item(),
        "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4, help="times each arm has its turn")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes, facts = {}, {}
    for name in args.arms:
        pipes[name], child = context.Pipe()
        context.Process(target=arm, args=(name, args.layers, child), daemon=True).start()
        facts[name] = pipes[name].recv()  # one after another: patch() is timed alone
        print(json.dumps(facts[name]), flush=True)

    def ask(name: str, *order: Any) -> Any:
        pipes[name].send(order)
        return pipes[name].recv()

    logits = {name: ask(name, "logits", 0) for name in args.arms}
    outputs = {name: agreement(logits["eager"], logits[name]) for name in args.arms}
    times: dict[str, dict[str, list[float]]] = {w: {a: [] for a in args.arms} for w in WORKLOADS}
    rows: list[dict[str, Any]] = []
    for workload in WORKLOADS:
        repeats = 5 if workload.startswith("prefill") else 3
        for name in args.arms:
            ask(name, workload, 2)  # warm-up
        for turn in range(args.rounds):
            for name in args.arms if turn % 2 == 0 else reversed(args.arms):
                times[workload][name] += ask(name, workload, repeats)
        for name in args.arms:
            ask(name, "done", 0)
        rows += [
            _row(workload, name, times[workload]["eager"], values, repeats) for name, values in times[workload].items()
        ]
    calls = {name: ask(name, "calls", 0) for name in args.arms}
    print(json.dumps({"outputs": outputs, "calls": calls}))
    if args.out is not None:
        args.out.write_text(json.dumps(_record(facts, outputs, calls, rows, times), indent=1))
    for pipe in pipes.values():
        pipe.send(None)


def _row(workload: str, name: str, eager: list[float], values: list[float], repeats: int) -> dict[str, Any]:
    from fastkernels.evaluation.statistics import median_ratio  # not at the top: it would bring torch to the arms early

    turns = [[t[i : i + repeats] for i in range(0, len(t), repeats)] for t in (eager, values)]
    x = median_ratio(*turns)
    ms = statistics.median(values)
    print(f"{workload:28} {name:8} {ms:8.2f} ms  {x.value:5.3f}x [{x.low:.3f}, {x.high:.3f}]", flush=True)
    return {"workload": workload, "arm": name, "ms": ms, "x": x.value, "low": x.low, "high": x.high}


def _record(*parts: Any) -> dict[str, Any]:
    facts, outputs, calls, rows, times = parts
    return about() | {"facts": facts, "outputs": outputs, "calls": calls, "rows": rows, "times_ms": times}


if __name__ == "__main__":
    main()
