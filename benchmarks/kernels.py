"""The shipped candidates beside what they replace, at production shapes: one line a shape.

    python benchmarks/kernels.py --tasks rms_norm silu_and_mul --match 16384

Columns: median us of one call (CUDA graph replay, and eager with its launch), GB/s or TFLOP/s, share of the roofline
floor (this machine's measured copy rate and matrix rate), and how many times faster than the best baseline: the
reference in eager, the reference under torch.compile, torch's fused operator, Liger. Arms are interleaved; inputs
rotate through more memory than the L2 cache holds."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastkernels.patches.build import substitute
from fastkernels.runtime.candidate import as_candidate
from fastkernels.tasks import Case, Task, get_task
from tests.kernels.shipped import shipped

Call = Callable[[], Any]
ROTATED_BYTES = 256 << 20  # over four times the L2 of an H200 (60 MB)
MAX_SETS = 16
ROUNDS = 15
GRAPH_CALLS = 10


def enumerate_baselines(task: Task, module: torch.nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Operators of others that compute the task, where they are installed and take this module's variant."""
    name, state = task.name, module
    if name == "rms_norm" and not state.late_cast:
        yield (
            "torch fused",
            lambda x, r=None: F.rms_norm(x if r is None else x + r, x.shape[-1:], state.weight, state.eps),
        )
    if name == "layer_norm":
        yield "torch fused", lambda x: F.layer_norm(x, x.shape[-1:], state.weight, state.bias, state.eps)
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return
    if name == "rms_norm" and not state.late_cast:
        yield (
            "Liger",
            lambda x, r=None: LigerRMSNormFunction.apply(
                x if r is None else x + r, state.weight, state.eps, 0.0, "llama", False
            ),
        )
    halves = {"silu_and_mul": LigerSiLUMulFunction, "gelu_and_mul": LigerGELUMulFunction}
    if name in halves and getattr(state, "approximate", "tanh") == "tanh":
        # Liger takes gate and up apart, as its host modules have them: contiguous, which costs nothing here.
        yield "Liger", lambda x: halves[name].apply(*x.view(2, *x.shape[:-1], -1))


def rotate(arguments: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
    """Copies of the arguments, handed out in turn."""
    size = sum(a.numel() * a.element_size() for a in arguments if isinstance(a, torch.Tensor))
    count = max(2, min(MAX_SETS, ROTATED_BYTES // max(size, 1)))
    sets = [tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments) for _ in range(count)]
    turn = [0]

    def following() -> tuple[Any, ...]:
        turn[0] = (turn[0] + 1) % count
        return sets[turn[0]]

    return following


def replay(call: Call) -> Call:
    """``GRAPH_CALLS`` calls as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            call()
    return graph.replay


def interleaved_us(calls: Mapping[str, Call], *, per_call: int, repeats: int) -> dict[str, float]:
    """Median microseconds of one call of each arm, the arms taking turns."""
    for call in calls.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) * 1e3 / repeats / per_call)
    return {name: statistics.median(s) for name, s in samples.items()}


def ceilings() -> tuple[float, float]:
    """Bytes a second of a large copy, read and write counted; FLOP a second of a large bf16 product."""
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    us = interleaved_us({"copy": lambda: target.copy_(source), "mm": lambda: a @ b}, per_call=1, repeats=3)
    return 2 * source.numel() * source.element_size() / us["copy"] * 1e6, 2 * 8192**3 / us["mm"] * 1e6


@torch.no_grad()
def row(task: Task, case: Case, *, compiled: bool, bandwidth: float, rate: float) -> str:
    arguments = case.draw(torch.Generator().manual_seed(0), torch.device("cuda"), torch.bfloat16)
    build = {"device": "cuda", "dtype": torch.bfloat16}
    reference, candidate = task.build(case, **build), task.build(case, implementation=shipped()[task.name], **build)
    state = {n: p.data for n, p in candidate.named_parameters()}
    substitute(candidate, lambda t, _: as_candidate(shipped()[t.name]) if t.name in shipped() else None, device="cuda")
    candidate.to(torch.bfloat16).load_state_dict(state, strict=False)
    arms: dict[str, Callable[..., Any]] = {"candidate": candidate, "eager": reference}
    if compiled:
        torch.compiler.reset()
        arms["compile"] = torch.compile(task.build(case, **build), dynamic=False)
    arms |= dict(enumerate_baselines(task, reference))
    following = rotate(arguments)
    calls = {name: lambda arm=arm: arm(*following()) for name, arm in arms.items()}
    for call in calls.values():
        call()
    eager = interleaved_us(calls, per_call=1, repeats=5)
    graphs = interleaved_us({n: replay(c) for n, c in calls.items()}, per_call=GRAPH_CALLS, repeats=1)
    cost = task.cost(reference, *arguments)
    floor_us = max(cost.bytes / bandwidth, cost.flops / rate) * 1e6
    us, others = graphs["candidate"], {n: t for n, t in graphs.items() if n != "candidate"}
    best = min(others, key=others.__getitem__)
    bound = f"{cost.bytes / us / 1e3:7.0f} GB/s  "
    if cost.flops / rate > cost.bytes / bandwidth:
        bound = f"{cost.flops / us / 1e6:7.0f} TFLOP/s"
    rest = "  ".join(f"{n} {t:.1f}/{eager[n]:.1f}" for n, t in others.items())
    return (
        f"{task.name:<18} {case.name:<22} {us:9.1f} us graph {eager['candidate']:9.1f} eager {bound} "
        f"{100 * floor_us / us:4.0f}% of floor  x{others[best] / us:.2f} {best}  ({rest})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(shipped()))
    parser.add_argument("--match", nargs="*", default=[], help="only cases whose name holds one of these")
    parser.add_argument("--no-compile", action="store_true", help="leave out the torch.compile baseline")
    options = parser.parse_args()
    bandwidth, rate = ceilings()
    print(
        f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, bf16; copy {bandwidth / 1e12:.2f} TB/s, "
        f"8192^3 product {rate / 1e12:.0f} TFLOP/s; us of a graph-replayed call, then of an eager one",
        flush=True,
    )
    for name in options.tasks:
        for case in get_task(name).cases():
            if case.production and (not options.match or any(m in case.name for m in options.match)):
                compiled = not options.no_compile
                print(row(get_task(name), case, compiled=compiled, bandwidth=bandwidth, rate=rate), flush=True)


if __name__ == "__main__":
    main()
