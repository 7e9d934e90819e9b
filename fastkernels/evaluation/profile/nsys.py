"""Nsight Systems: its command lines, and its CSV summary of kernels. It traces; no counters, no clock control."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastkernels.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class KernelSum:
    """One kernel over the whole window: launches, and seconds in all, median, least and most."""

    name: str
    launches: int
    seconds: float
    median: float
    least: float
    most: float


def nsys_command(program: Sequence[str], *, output: Path, executable: str = "nsys") -> list[str]:
    """Traces the window of ``program`` into ``output`` (.nsys-rep).

    >>> nsys_command(["python", "work.py"], output=Path("a.nsys-rep"))[:3]
    ['nsys', 'profile', '--trace=cuda']
    """
    return [
        executable,
        "profile",
        "--trace=cuda",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--cuda-graph-trace=node",  # a replayed graph as its kernels
        "--force-overwrite=true",
        f"--output={output}",
        *program,
    ]


def nsys_stats_command(output: Path, *, executable: str = "nsys") -> list[str]:
    """The summary of kernels in a trace, as CSV on stdout."""
    return [
        executable,
        "stats",
        "--report=cuda_gpu_kern_sum",
        "--format=csv",
        "--force-export=true",
        "--output=-",
        str(output),
    ]


def parse_nsys(text: str) -> list[KernelSum]:
    """Kernels in what ``nsys stats --report=cuda_gpu_kern_sum --format=csv`` prints, slowest first.

    Raises:
        EvaluationError: there is no table, or the trace holds no kernels.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("Time") and "Name" in line), None)
    if start is None:
        last = [line for line in lines if line.strip()][-1:] or ["nothing"]
        raise EvaluationError(
            f"profile: nsys: it printed no summary of kernels; its last words: {last[0].strip()}. Did a kernel run in "
            "the window? --tool torch shows what does."
        )
    found = [
        KernelSum(
            name=row["Name"],
            launches=int(row["Instances"]),
            seconds=_nanoseconds(row["Total Time (ns)"]),
            median=_nanoseconds(row["Med (ns)"]),
            least=_nanoseconds(row["Min (ns)"]),
            most=_nanoseconds(row["Max (ns)"]),
        )
        for row in csv.DictReader(lines[start:])
        if row.get("Name") and row.get("Instances")
    ]
    return sorted(found, key=lambda k: -k.seconds)


def _nanoseconds(text: str) -> float:
    return float(text.replace(",", "")) * 1e-9
