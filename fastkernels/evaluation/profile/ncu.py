"""Nsight Compute: its command line, and its CSV of one row a kernel launch and metric.

Clocks are left as they run (its default would lock them to base); caches it flushes before every pass, as the bench's
rotating inputs do."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

from fastkernels.errors import EvaluationError

# Nsight Compute's name, and ours, whose last word is the unit.
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "gpu__time_duration.sum": "duration_seconds",
        "dram__bytes.sum": "dram_bytes",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
        "lts__t_sector_hit_rate.pct": "l2_hit_percent",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
        "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
        "launch__registers_per_thread": "registers_per_thread",
        "launch__shared_mem_per_block": "shared_memory_bytes",
    }
)
# To seconds and bytes; older and newer releases spell units differently.
UNITS: Mapping[str, float] = MappingProxyType(
    {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3, "s": 1.0, "second": 1.0}
    | {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Kbyte/block": 1e3}
)
TROUBLES: Mapping[str, str] = MappingProxyType(
    {
        "ERR_NVGPUCTRPERM": "the driver keeps performance counters to administrators. Run as root or with "
        "CAP_SYS_ADMIN, or load the driver with NVreg_RestrictProfilingToAdminUsers=0; --tool nsys and --tool torch "
        "need no counters",
        "river resource": "another profiler holds the counters. Stop it (DCGM: dcgmi profiling --pause), or take "
        "--tool nsys or --tool torch",
        "not supported on device": "this device does not let itself be profiled here. Take --tool nsys or --tool torch",
        "No kernels were profiled": "no kernel of the candidate ran in the window. Does forward launch it for this "
        "case?",
    }
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel launch: the kernel's demangled name, and its metrics under our names."""

    name: str
    metrics: Mapping[str, float]


def ncu_command(program: Sequence[str], *, kernels: Iterable[str], executable: str = "ncu") -> list[str]:
    """Profiles the window of ``program``: of the kernels so named, or of all where there are no names.

    >>> ncu_command(["python", "work.py"], kernels=["_norm"])[1:5]
    ['--clock-control', 'none', '--profile-from-start', 'off']
    """
    names = "|".join(sorted(map(re.escape, kernels)))
    only = ["--kernel-name-base", "demangled", "--kernel-name", f"regex:^({names})$"] if names else []
    shape = ["--csv", "--page", "details", "--print-units", "base"]
    return [
        executable,
        *("--clock-control", "none"),
        *("--profile-from-start", "off"),
        *("--target-processes", "all"),
        *only,
        *("--metrics", ",".join(METRICS)),
        *shape,
        *program,
    ]


def parse_ncu(text: str) -> list[Launch]:
    """Launches in what ``ncu --csv --page details`` prints, in order; its messages around the table are passed over.

    Raises:
        EvaluationError: there is no table; the message says why, where the tool told.
    """
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    names: dict[str, str] = {}
    for row in _table(text):
        names[row["ID"]] = row["Kernel Name"]
        ours = METRICS.get(row["Metric Name"])
        value = _number(row["Metric Value"])
        if ours is not None and value is not None:
            rows[row["ID"]][ours] = value * UNITS.get(row["Metric Unit"], 1.0)
    if not names:
        raise EvaluationError(f"profile: ncu: {trouble(text)}.")
    return [Launch(name=names[i], metrics=rows[i]) for i in names]


def trouble(text: str) -> str:
    """Why ncu gave no table, and the way out, from what it printed."""
    for sign, meaning in TROUBLES.items():
        if sign in text:
            return meaning
    last = [line for line in text.splitlines() if line.strip()][-1:] or ["nothing"]
    return f"it printed no table; its last words: {last[0].strip()}"


def means(launches: Sequence[Launch]) -> dict[str, float]:
    """Each metric's mean over the launches that have it."""
    names = dict.fromkeys(name for launch in launches for name in launch.metrics)
    return {n: fmean(launch.metrics[n] for launch in launches if n in launch.metrics) for n in names}


def _table(text: str) -> Iterator[dict[str, str]]:
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        if row.get("Metric Name") and row.get("Kernel Name"):
            yield row


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None  # n/a: the device has no such counter
