"""Does the bench tell the truth, on one GPU? A candidate of half the bytes reads 2.0x, a profiler reads the same times.

The profiler is torch's (CUPTI), in a process of its own before and after the bench: as many calls as a batch of the
bench has, each on other inputs, caches flushed before the first. Kernels last 100 us and more, so that the 1 to 2 us
between two of them stay below the 3% in which both must agree.

    python -m benchmarks.bench_evidence --out benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

HALF, HALF_CASE = "benchmarks.streaming", "rows_16384"
TWICE, TWICE_WITHIN = 2.0, 0.1
PROFILER_WITHIN = 0.03
PROFILED_BATCHES = 6
WARM_CALLS = 5
CACHES_FLUSHED = 3


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One implementation whose time the bench and the profiler are both asked for."""

    task: str
    case: str
    dtype: str
    module: str
    cls: str

    @property
    def implementation(self) -> type[torch.nn.Module]:
        return getattr(importlib.import_module(self.module), self.cls)


KERNELS = (
    Kernel(task="rms_norm", case="llama_16384", dtype="float32", module="fastkernels.tasks.L1.rms_norm", cls="Witness"),
    Kernel(
        task="softmax",
        case="rows_65536x2048",
        dtype="bfloat16",
        module="fastkernels.evaluation.bench.baselines.torch_ops",
        cls="TorchSoftmax",
    ),
    Kernel(task="linear", case="llama_qkv_2048", dtype="bfloat16", module="fastkernels.tasks.L1.linear", cls="Linear"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tasks", nargs="*", default=[k.task for k in KERNELS], help="whose times are compared")
    parser.add_argument("--no-half", action="store_true", help="leave out the candidate of half the bytes")
    parser.add_argument("--profile", help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = [k for k in KERNELS if k.task in args.tasks]
    if args.profile is not None:
        pathlib.Path(args.profile).write_text(json.dumps({k.task: profiled(k) for k in chosen}))
        return
    from benchmarks.about import about

    record: dict[str, Any] = {**about(), "rounds": args.rounds}
    if not args.no_half:
        record["half the bytes"] = half_the_bytes(args.rounds)
    if chosen:
        record["beside a profiler"] = beside_a_profiler(chosen, args.rounds)
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    rows = [record.get("half the bytes"), *record.get("beside a profiler", {}).values()]
    if not all(row["as expected"] for row in rows if row is not None):
        raise SystemExit(1)


def half_the_bytes(rounds: int) -> dict[str, Any]:
    """One pass over memory against two."""
    streaming = importlib.import_module(HALF)
    case = benched("relu", HALF_CASE, "bfloat16", streaming.OnePass, streaming.TwoPasses, rounds)
    ratios = case["ratios"]
    case["as expected"] = case["gate"] and abs(ratios[case["mode"]]["value"] - TWICE) <= TWICE_WITHIN
    read = [
        f"{m} {r['value']:.3f}x [{r['low']:.3f}, {r['high']:.3f}], {case['seconds'][m] * 1e6:.1f} us"
        for m, r in ratios.items()
    ]
    print(
        f"half the bytes: {'; '.join(read)}; {case['roofline share'] or 0:.0%} of the roofline; {told(case)}",
        flush=True,
    )
    return case


def beside_a_profiler(kernels: list[Kernel], rounds: int) -> dict[str, Any]:
    """The bench's time of each kernel beside the profiler's."""
    from fastkernels.tasks import get_task

    before = profiled_elsewhere(kernels)
    found = {}
    for k in kernels:
        found[k.task] = benched(k.task, k.case, k.dtype, k.implementation, get_task(k.task).interface, rounds)
    after = profiled_elsewhere(kernels)
    for k in kernels:
        row, sides = found[k.task], (before[k.task], after[k.task])
        row["profiler"] = dict(zip(("before", "after"), sides, strict=True))
        kernel, span = (statistics.mean(side[key] for side in sides) for key in ("kernel_us", "span_us"))
        row["off"] = {mode: seconds * 1e6 / kernel - 1 for mode, seconds in row["seconds"].items()}
        row["as expected"] = row["gate"] and abs(row["off"][row["mode"]]) <= PROFILER_WITHIN
        off = ", ".join(f"{m} {row['seconds'][m] * 1e6:.2f} us ({o:+.2%})" for m, o in row["off"].items())
        sums = f"kernels {kernel:.2f} us, from first to last {span:.2f} us a call"
        print(f"{k.task} {k.case} {k.dtype}: bench {off}; profiler: {sums}; {told(row)}", flush=True)
    return found


def told(row: dict[str, Any]) -> str:
    return "as expected" if row["as expected"] else f"NOT as expected: {row['failures'] or row['notes'] or 'the time'}"


def benched(task: str, case: str, dtype: str, candidate: type, baseline: type, rounds: int) -> dict[str, Any]:
    """One case by ``fastkernels.bench``, against one baseline."""
    from fastkernels.evaluation.bench.bench import bench

    started = time.monotonic()
    (found,) = bench(
        {task: candidate},
        baselines={task: [baseline]},
        cases=[case],
        dtypes=[dtype],
        device="cuda",
        rounds=rounds,
        production=True,
        modes=["eager", "graph"],
    ).cases
    return {
        "case": f"{task} {case} {dtype}",
        "gate": found.gate,
        "mode": found.mode,
        "ratios": {mode: r.model_dump() for mode, r in found.ratios.items()},
        "seconds": {mode: t.seconds for mode, t in found.timing.items()},
        "events": {mode: t.event_seconds for mode, t in found.timing.items()},
        "baseline seconds": {mode: t.seconds for b in found.baselines for mode, t in b.modes.items()},
        "roofline share": found.roofline_share,
        "failures": [str(f) for f in found.failures],
        "notes": found.notes,
        "took seconds": round(time.monotonic() - started, 1),
    }


def profiled_elsewhere(kernels: list[Kernel]) -> dict[str, Any]:
    """``profiled`` in another process: a profiler never quite leaves one."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "profile.json"
        command = [sys.executable, "-m", "benchmarks.bench_evidence", "--profile", str(out)]
        root = pathlib.Path(__file__).parents[1]
        subprocess.run([*command, "--tasks", *(k.task for k in kernels)], check=True, cwd=root)
        return json.loads(out.read_text())


@torch.no_grad()
def profiled(kernel: Kernel) -> dict[str, Any]:
    """Microseconds of a call by CUPTI: the sum of its kernels, and its share of the time from the first to the last."""
    from torch.profiler import ProfilerActivity, profile

    from fastkernels.evaluation.bench.roofline import cache_bytes
    from fastkernels.evaluation.bench.site import JITTER
    from fastkernels.tasks import get_task

    task, dtype, device = get_task(kernel.task), getattr(torch, kernel.dtype), torch.device("cuda", 0)
    case = next(c for c in task.cases() if c.name == kernel.case)
    module = task.build(case, implementation=kernel.implementation, device=device, dtype=dtype).requires_grad_(False)
    drawn = case.draw(torch.Generator().manual_seed(1), device, dtype)
    calls = calls_of_a_batch(module, drawn, device)
    slots = [tuple(t.clone() for t in drawn) for _ in range(calls)]
    flush = torch.empty(CACHES_FLUSHED * cache_bytes(device), dtype=torch.uint8, device=device)
    kernels, spans, names = [], [], dict[str, None]()
    for _ in range(1 + PROFILED_BATCHES):
        for slot in slots:
            for t, like in zip(slot, drawn, strict=True):
                t.copy_(like * torch.empty_like(like).uniform_(*JITTER))
        flush.zero_()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            outputs = [module(*slot) for slot in slots]
            torch.cuda.synchronize()
        del outputs
        ran = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels.append(sum(e.time_range.elapsed_us() for e in ran) / calls)
        spans.append((max(e.time_range.end for e in ran) - min(e.time_range.start for e in ran)) / calls)
        names |= dict.fromkeys(e.name for e in ran)
    # The first batch is the profiler's own start.
    kernel_us, span_us = (statistics.median(values[1:]) for values in (kernels, spans))
    return {
        "kernel_us": kernel_us,
        "span_us": span_us,
        "calls": calls,
        "batches_kernel_us": kernels[1:],
        "kernels": list(names),
    }


def calls_of_a_batch(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], device: torch.device) -> int:
    """As many as the bench would make."""
    from fastkernels.evaluation.bench.batch_calls import batch_calls

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(WARM_CALLS):
        out = module(*arguments)
    start.record()
    for _ in range(WARM_CALLS):
        out = module(*arguments)
    end.record()
    end.synchronize()
    largest = max(sum(t.numel() * t.element_size() for t in some) for some in (arguments, (out,)))
    seconds = start.elapsed_time(end) / 1e3 / WARM_CALLS
    return batch_calls(seconds, bytes_of_call=largest, mode="eager", device=device)


if __name__ == "__main__":
    main()
