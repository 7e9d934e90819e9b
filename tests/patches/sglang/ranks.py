"""Two ranks of tensor parallelism on gloo, each a process with SGLang's ModelRunner, as its schedulers would be."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from tests.engines.two_ranks import in_two_processes

SECONDS = 150  # of both processes together; importing the engine takes up to 40 where the machine is busy


def on_two_ranks(path: Path, folder: Path, tasks: set[str]) -> list[dict[str, Any]]:
    """What each rank generates unpatched and with the references of ``tasks`` at every site, and its report."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [folder / f"rank{rank}.json" for rank in range(2)]
    in_two_processes(rank_of_two, [(path, port, file, tasks) for file in files], seconds=SECONDS)
    return [json.loads(file.read_text()) for file in files]


def rank_of_two(rank: int, path: Path, port: int, file: Path, tasks: set[str]) -> None:
    """One rank's process."""
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "0|1"
    import fastkernels
    from tests.patches.sglang.runner import build, generate, model_of

    runner = build(path, rank, tp_size=2, nccl_port=port)
    unpatched, logits = generate(runner)
    handle = fastkernels.patch(model_of(runner), "reference", select=lambda site: site.task.name in tasks)
    patched, after = generate(runner)
    report = handle.report
    handle.unpatch()
    again, _ = generate(runner)
    told = {
        "pid": os.getpid(),
        "tokens": [unpatched, patched, again],
        "distance": float((after - logits).abs().max()),
        "applied": Counter(s.task for s in report.applied),
        "calls": sorted({(s.task, s.calls) for s in report.applied}),
        "bypassed": [s.bypassed for s in report.applied if s.bypassed],
        "gated": {s.path: s.reason for s in report.sites if s.state == "gated"},
    }
    file.write_text(json.dumps(told))
