"""What the machinery itself costs, on one GPU: identity candidates on a model beside the same model without.

Finer than the null arm of ``llama_eager``, whose arms are processes: both models are in this process, over the same
weights, and take turns, so that they share the cores, the allocator and whatever else the machine does meanwhile. A
third model, unpatched too, shows what such a comparison reads where there is nothing to see. Also times ``patch(model,
"shipped")`` in this process.

    python -m benchmarks.null_arm --out benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import statistics
import time

from benchmarks.llama_eager import WORKLOADS, _runner, build

# Name: the sites that get identity candidates; None for none.
SIDES = {"whole model": "all", "layer by layer": "?*", "nothing": None}


def main() -> None:
    import torch

    import fastkernels
    from fastkernels.evaluation.statistics import median_ratio

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    plain = build(32)
    torch.cuda.synchronize()
    started = time.perf_counter()
    handle = fastkernels.patch(plain, "shipped")
    torch.cuda.synchronize()
    record: dict[str, object] = {"patch_seconds": time.perf_counter() - started}
    handle.unpatch()
    print(json.dumps(record), flush=True)
    handles = {}
    models = {"plain": plain}
    for side, select in SIDES.items():
        models[side] = copy.deepcopy(plain, {id(t): t for t in (*plain.parameters(), *plain.buffers())})
        if select is not None:
            handles[side] = fastkernels.patch(models[side], "identity", select=select)
    for workload, rounds in (("decode batch 1", args.rounds), ("prefill 1x2048", args.rounds)):
        runs = {side: _runner(model, *WORKLOADS[workload]) for side, model in models.items()}
        times: dict[str, list[float]] = {side: [] for side in runs}
        for turn in range(rounds + 2):
            for side in runs if turn % 2 == 0 else reversed(runs):
                ms = runs[side]()
                times[side] += [ms] if turn >= 2 else []  # the first two warm up
        for side in SIDES:
            x = median_ratio(times["plain"], times[side])
            record[f"{workload}, {side}"] = {"x": x.value, "low": x.low, "high": x.high, "ms": times[side]}
            row = f"{statistics.median(times['plain']):.2f} to {statistics.median(times[side]):.2f} ms"
            print(f"{workload:16} {side:16} {row}  {x.value:.3f}x [{x.low:.3f}, {x.high:.3f}]", flush=True)
        record[f"{workload}, plain"] = times["plain"]
    for side, patch in handles.items():
        assert all(d.calls > 0 and not d.bypassed for d in patch.dispatchers.values()), side
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
