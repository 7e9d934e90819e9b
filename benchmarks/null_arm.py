"""What the machinery itself costs, on one GPU: identity candidates in and out of the same model, block by block.

Finer than the null arm of ``llama_eager``, whose arms are processes: here both sides share the process, the cores
and the allocator, and only the dispatchers come and go. Also times ``patch(model, "shipped")`` in this process.

    python -m benchmarks.null_arm --out benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

from benchmarks.bootstrap import bootstrap_ratio
from benchmarks.llama_eager import WORKLOADS, _runner, build


def main() -> None:
    import torch

    import fastkernels

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    model = build(32)
    torch.cuda.synchronize()
    started = time.perf_counter()
    handle = fastkernels.patch(model, "shipped")
    torch.cuda.synchronize()
    record: dict[str, object] = {"patch_seconds": time.perf_counter() - started}
    handle.unpatch()
    print(json.dumps(record), flush=True)
    for workload, repeats in (("decode batch 1", 2), ("prefill 1x2048", 4)):
        run = _runner(model, *WORKLOADS[workload])
        run(), run()
        plain: list[float] = []
        patched: list[float] = []
        for turn in range(args.rounds):
            for side in (plain, patched) if turn % 2 == 0 else (patched, plain):
                handle = fastkernels.patch(model, "identity") if side is patched else None
                run()
                side += [run() for _ in range(repeats)]
                if handle is not None:
                    assert handle.dispatchers["model.layers.0"].calls > 0
                    handle.unpatch()
        low, ratio, high = bootstrap_ratio(plain, patched)
        record[workload] = {"plain_ms": plain, "identity_ms": patched, "x": ratio, "low": low, "high": high}
        row = f"{statistics.median(plain):.2f} to {statistics.median(patched):.2f} ms"
        print(f"{workload:16} {row}  {ratio:.3f}x [{low:.3f}, {high:.3f}]", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
