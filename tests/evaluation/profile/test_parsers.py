"""The tools' command lines, and what is read out of their tables.

No GPU here: the samples below were written by hand in the formats that the tools' manuals describe (Nsight Compute's
CSV of the details page, Nsight Systems' CSV of the cuda_gpu_kern_sum report), with the messages they print around."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.profile.ncu import METRICS, means, ncu_command, parse_ncu
from fastkernels.evaluation.profile.nsys import nsys_command, nsys_stats_command, parse_nsys

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def row(launch: int, kernel: str, metric: str, unit: str, value: str) -> str:
    section = "Command line profiler metrics"
    return (
        f'"{launch}","77","python3.11","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(2048, 1, 1)","0","9.0",'
        f'"{section}","{metric}","{unit}","{value}"'
    )


NCU = "\n".join(
    [
        "==PROF== Connected to process 77 (/usr/bin/python3.11)",
        '==PROF== Profiling "_norm_kernel" - 0: 0%....50%....100% - 4 passes',
        '==PROF== Profiling "_norm_kernel" - 1: 0%....50%....100% - 4 passes',
        "==PROF== Disconnected from process 77",
        HEADER,
        row(0, "_norm_kernel", "gpu__time_duration.sum", "ns", "12,000"),
        row(0, "_norm_kernel", "dram__bytes.sum", "byte", "33,554,432"),
        row(0, "_norm_kernel", "launch__registers_per_thread", "register/thread", "32"),
        row(0, "_norm_kernel", "lts__t_sector_hit_rate.pct", "%", "49.50"),
        row(1, "_norm_kernel", "gpu__time_duration.sum", "ns", "14,000"),
        row(1, "_norm_kernel", "dram__bytes.sum", "byte", "n/a"),
        row(2, "void add<float, 4>(float*, int)", "gpu__time_duration.sum", "usecond", "2.5"),
        row(2, "void add<float, 4>(float*, int)", "some__other.metric", "", "1"),
    ]
)

NSYS = """Generating SQLite file trace.sqlite from trace.nsys-rep
Processing [trace.sqlite] with [reports/cuda_gpu_kern_sum.py]...
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
20.0,50000,10,5000.0,4800.0,4500,7000,700.0,"void add<float, 4>(float*, int)"
80.0,200000,20,10000.0,9900.0,9800,12000,400.0,_norm_kernel
"""


def test_ncu_leaves_the_clocks_alone_and_looks_at_the_window_and_the_named_kernels_only() -> None:
    command = ncu_command(["python", "-m", "work"], kernels=["_a", "f(int)"])
    joined = " ".join(command)
    assert "--clock-control none" in joined and "--profile-from-start off" in joined
    assert command[command.index("--kernel-name") + 1] == r"regex:^(_a|f\(int\))$"
    assert command[command.index("--kernel-name-base") + 1] == "demangled"
    assert set(command[command.index("--metrics") + 1].split(",")) == set(METRICS)
    assert command[-3:] == ["python", "-m", "work"]


def test_without_names_ncu_looks_at_every_kernel_of_the_window() -> None:
    assert "--kernel-name" not in ncu_command(["python"], kernels=[])


def test_ncus_launches_have_their_metrics_in_seconds_and_bytes() -> None:
    first, second, third = parse_ncu(NCU)
    assert (first.name, third.name) == ("_norm_kernel", "void add<float, 4>(float*, int)")
    assert first.metrics == {
        "duration_seconds": pytest.approx(12e-6),
        "dram_bytes": 33554432.0,
        "registers_per_thread": 32.0,
        "l2_hit_percent": 49.5,
    }
    assert second.metrics == {"duration_seconds": pytest.approx(14e-6)}
    assert third.metrics == {"duration_seconds": pytest.approx(2.5e-6)}


def test_a_metric_is_averaged_over_the_launches_that_have_it() -> None:
    first, second, _ = parse_ncu(NCU)
    assert means([first, second])["duration_seconds"] == pytest.approx(13e-6)
    assert means([first, second])["dram_bytes"] == 33554432.0


@pytest.mark.parametrize(
    ("printed", "way_out"),
    [
        (
            "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters",
            "NVreg_RestrictProfilingToAdminUsers=0",
        ),
        ("==ERROR== Profiling failed because a driver resource was unavailable.", "dcgmi profiling --pause"),
        ("==ERROR== Profiling is not supported on device 0.", "--tool nsys"),
        ("==WARNING== No kernels were profiled.", "no kernel of the candidate ran"),
        ("==ERROR== something new\n", "something new"),
        ("", "nothing"),
    ],
)
def test_where_ncu_gives_no_table_the_error_says_why(printed: str, way_out: str) -> None:
    with pytest.raises(EvaluationError, match="profile: ncu") as raised:
        parse_ncu(printed)
    assert way_out in str(raised.value)


def test_nsys_traces_the_window_and_each_kernel_of_a_graph() -> None:
    command = nsys_command(["python", "-m", "work"], output=Path("a.nsys-rep"))
    assert {"--capture-range=cudaProfilerApi", "--cuda-graph-trace=node", "--output=a.nsys-rep"} < set(command)
    assert command[-3:] == ["python", "-m", "work"]
    assert nsys_stats_command(Path("a.nsys-rep"))[-1] == "a.nsys-rep"


def test_nsyss_kernels_come_slowest_first_in_seconds() -> None:
    slow, fast = parse_nsys(NSYS)
    assert (slow.name, slow.launches, slow.seconds) == ("_norm_kernel", 20, pytest.approx(200e-6))
    assert (fast.name, fast.median, fast.most) == (
        "void add<float, 4>(float*, int)",
        pytest.approx(4.8e-6),
        pytest.approx(7e-6),
    )


def test_where_nsys_gives_no_table_the_error_quotes_it() -> None:
    with pytest.raises(EvaluationError, match=r"SKIPPED: trace\.sqlite does not contain CUDA kernel data"):
        parse_nsys("Processing...\nSKIPPED: trace.sqlite does not contain CUDA kernel data.\n")
