"""Floors and shares follow from the peaks, and the peaks are what this machine was seen to do."""

from __future__ import annotations

import time

import pytest
import torch

from fastkernels.evaluation.bench.roofline import MIB, Peaks, cache_bytes, measured_peaks
from fastkernels.tasks.task import Cost

CPU = torch.device("cpu")
# 1 GB/s from memory, 10 from a cache of 1 MB; 100 GFLOP/s.
PEAKS = Peaks(
    device="cuda",
    dtype=torch.float32,
    cache_bytes=10**6,
    bandwidth=((10**4, 2e9), (10**6, 1e10), (10**8, 1e9)),
    flops=1e11,
)


def test_the_memorys_rate_is_that_of_the_largest_working_set_and_the_caches_the_best() -> None:
    assert (PEAKS.memory_bandwidth, PEAKS.cache_bandwidth) == (1e9, 1e10)


def test_what_a_cache_could_hold_may_have_a_share_above_one_and_is_not_impossible_for_that() -> None:
    cost = Cost(bytes=5 * 10**5, flops=0)
    assert PEAKS.share(cost, 1e-4) == pytest.approx(5.0)
    assert not PEAKS.impossible(cost, 1e-4)


def test_a_memory_bound_task_at_the_memorys_rate_has_a_share_of_one() -> None:
    assert PEAKS.share(Cost(bytes=10**8, flops=1), 0.1) == pytest.approx(1.0)
    assert PEAKS.share(Cost(bytes=10**8, flops=1), 0.2) == pytest.approx(0.5)


def test_a_compute_bound_task_is_measured_by_its_operations() -> None:
    assert PEAKS.share(Cost(bytes=10, flops=10**11), 2.0) == pytest.approx(0.5)
    assert PEAKS.floor_seconds(Cost(bytes=10, flops=10**11)) == pytest.approx(1.0)


def test_what_takes_longer_at_the_peaks_is_the_bound() -> None:
    assert PEAKS.bound(Cost(bytes=10**8, flops=10**9)) == "memory"
    assert PEAKS.bound(Cost(bytes=10**8, flops=10**11)) == "compute"


def test_the_floor_grants_one_cache_of_bytes_that_were_there_already() -> None:
    assert PEAKS.floor_seconds(Cost(bytes=10**6, flops=0)) == pytest.approx(1e-4)
    assert PEAKS.floor_seconds(Cost(bytes=3 * 10**6, flops=0)) == pytest.approx(1e-4 + 2e-3)


def test_half_the_floor_is_impossible_and_the_floor_is_not() -> None:
    cost = Cost(bytes=10**8, flops=0)
    floor = PEAKS.floor_seconds(cost)
    assert PEAKS.impossible(cost, floor / 2) and not PEAKS.impossible(cost, floor)


def test_a_trusted_time_below_the_floor_raises_the_peaks_and_one_above_leaves_them() -> None:
    cost = Cost(bytes=10**8, flops=10**6)
    floor = PEAKS.floor_seconds(cost)
    assert PEAKS.raised(cost, floor / 3).floor_seconds(cost) == pytest.approx(floor / 3)
    assert PEAKS.raised(cost, 2 * floor) == PEAKS


def test_no_cost_has_no_floor() -> None:
    assert PEAKS.floor_seconds(Cost(bytes=0, flops=0)) == 0.0


def honest(device: torch.device, dtype: torch.dtype, floats: int) -> None:
    """A copy and a product stay above their floors, and come near."""
    peaks = measured_peaks(device, dtype)
    source = torch.randn(floats, device=device)
    target = torch.empty_like(source)
    cost = Cost(bytes=2 * 4 * floats, flops=0)
    seconds = min(timed(lambda: target.copy_(source), device) for _ in range(5))
    assert not peaks.impossible(cost, seconds)
    assert 0.2 < peaks.share(cost, seconds) < 3.0
    assert peaks.impossible(cost, peaks.floor_seconds(cost) / 2)


def timed(work, device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def test_on_this_cpu_a_copy_is_near_its_floor_and_half_the_floor_impossible() -> None:
    honest(CPU, torch.float32, 8 * MIB)


def test_peaks_are_measured_once_and_leave_the_global_state_as_it_was() -> None:
    torch.manual_seed(3)
    before, precision = torch.random.get_rng_state(), torch.get_float32_matmul_precision()
    first = measured_peaks(CPU, torch.float32)
    start = time.perf_counter()
    assert measured_peaks(CPU, torch.float32) is first
    assert time.perf_counter() - start < 0.01
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == precision


def test_the_cpus_cache_is_known() -> None:
    assert 256 * 1024 <= cache_bytes(CPU) <= 2**31


@pytest.mark.gpu
def test_on_this_gpu_a_copy_is_near_its_floor_and_half_the_floor_impossible() -> None:
    honest(torch.device("cuda"), torch.bfloat16, 256 * MIB)


@pytest.mark.gpu
def test_the_gpus_peaks_are_plausible() -> None:
    peaks = measured_peaks(torch.device("cuda"), torch.bfloat16)
    assert peaks.cache_bandwidth >= peaks.memory_bandwidth > 1e11 and peaks.flops > 1e13
