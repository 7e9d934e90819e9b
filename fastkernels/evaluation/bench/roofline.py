"""The least time that a device needs for a task's bytes and operations, at peaks measured on that very device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from fastkernels.tasks.task import Cost

MIB = 2**20
SIZES = (MIB // 4, MIB, 4 * MIB, 16 * MIB, 64 * MIB)  # of a buffer; a copy moves twice as much
LARGEST_CPU_BYTES = 64 * MIB
UNKNOWN_CACHE_BYTES = 32 * MIB
SQUARES = {"cpu": (512,), "cuda": (4096, 8192)}  # sides of the products that show the peak
# Clocks move, and on a shared CPU all else does: what a time may lie below the floor before it is impossible.
SLACK = {"cpu": 1.5, "cuda": 1.15}
# Float32 products may honestly be put together from three bfloat16 ones.
SPLITS_OF_FLOAT32 = 3


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a device was seen to do for one dtype.

    ``bandwidth`` pairs the bytes that a copy, a sum or a fill touches with the best rate seen there, in bytes a
    second, smallest first; ``flops`` is in floating-point operations a second, ``cache_bytes`` the last-level cache.
    """

    device: str
    dtype: torch.dtype
    cache_bytes: int
    bandwidth: tuple[tuple[int, float], ...]
    flops: float

    @property
    def memory_bandwidth(self) -> float:
        """Bytes a second of a working set that no cache holds."""
        return self.bandwidth[-1][1]

    @property
    def cache_bandwidth(self) -> float:
        """The best rate seen, bytes a second."""
        return max(rate for _, rate in self.bandwidth)

    def share(self, cost: Cost, seconds: float) -> float:
        """How much of ``seconds`` the task needs at the peaks, every byte from memory: where inputs are cold 1 is
        perfect, more where a cache holds what each call reads again."""
        return max(self._moving(cost), cost.flops / self.flops) / seconds

    def bound(self, cost: Cost) -> Literal["memory", "compute"]:
        """Which of the two takes longer at the peaks."""
        return "memory" if self._moving(cost) >= cost.flops / self.flops else "compute"

    def _moving(self, cost: Cost) -> float:
        return cost.bytes / self.memory_bandwidth

    def floor_seconds(self, cost: Cost) -> float:
        """No honest implementation is faster: a whole cache of the bytes may be there already, the rest is fetched."""
        cached = min(cost.bytes, self.cache_bytes)
        fetched = cached / self.cache_bandwidth + (cost.bytes - cached) / self.memory_bandwidth
        return max(fetched, cost.flops / self.flops)

    def impossible(self, cost: Cost, seconds: float) -> bool:
        """Whether ``seconds`` lies below the floor by more than clocks explain."""
        return seconds * SLACK[torch.device(self.device).type] < self.floor_seconds(cost)

    def raised(self, cost: Cost, seconds: float) -> Peaks:
        """Peaks under which a trusted implementation's time is no miracle: its own rates where they are higher."""
        excess = max(1.0, self.floor_seconds(cost) / seconds)
        faster = tuple((size, rate * excess) for size, rate in self.bandwidth)
        return replace(self, bandwidth=faster, flops=self.flops * excess)


@cache
def measured_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Peaks of ``device`` for ``dtype``, measured on random data at the first call in this process (under a second).

    Bandwidth is the best of copies, sums and fills; FLOP/s those of square products in ``dtype``, TF32 off.
    """
    wide = dtype if dtype.is_floating_point else torch.float32
    flops = _flops(device, wide)
    if wide == torch.float32 and device.type == "cuda":
        flops = max(flops, _flops(device, torch.bfloat16) / SPLITS_OF_FLOAT32)
    return Peaks(
        device=str(device),
        dtype=dtype,
        cache_bytes=cache_bytes(device),
        bandwidth=_bandwidth(device),
        flops=flops,
    )


@cache
def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache: L2 of a GPU, the largest that the first CPU sees."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    found = [_cache_size(p) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(found, default=UNKNOWN_CACHE_BYTES)


def _cache_size(path: Path) -> int:
    text = path.read_text().strip()
    units = {"K": 1024, "M": MIB}
    return int(text.rstrip("KM")) * units.get(text[-1:], 1)


@cache
def _bandwidth(device: torch.device) -> tuple[tuple[int, float], ...]:
    largest = LARGEST_CPU_BYTES if device.type == "cpu" else 8 * cache_bytes(device)
    sizes = sorted({s for s in SIZES if s < largest} | {largest})
    touched = [rate for size in sizes for rate in _rates(device, size)]
    return tuple((size, max(rate for s, rate in touched if s == size)) for size in sorted({s for s, _ in touched}))


def _rates(device: torch.device, size: int) -> Iterator[tuple[int, float]]:
    """Bytes touched and bytes a second, of a copy, a sum and a fill on buffers of ``size`` bytes."""
    source = _random(device, size // 4)
    target = torch.empty_like(source)
    yield 2 * size, 2 * size / _best_seconds(device, lambda: target.copy_(source))
    yield size, size / _best_seconds(device, source.sum)
    yield size, size / _best_seconds(device, lambda: target.fill_(1.0))


@cache
def _flops(device: torch.device, dtype: torch.dtype) -> float:
    best = 0.0
    with _exact_float32():
        for side in SQUARES[device.type]:
            a, b = (_random(device, side, side).to(dtype) for _ in range(2))
            out = torch.empty(side, side, device=device, dtype=dtype)
            seconds = _best_seconds(device, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))  # type: ignore[misc] # bound now
            best = max(best, 2 * side**3 / seconds)
    return best


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    """Not zeros, which cost less power; and not from the global generator, which is others'."""
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(0))


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _best_seconds(device: torch.device, work: Callable[[], object], *, budget: float = 0.03) -> float:
    """Seconds of one call: the best of the blocks that fit into ``budget`` seconds, three at least."""
    timed = _cuda_block if device.type == "cuda" else _cpu_block
    timed(work, 2)
    calls = max(1, min(100, int(budget / 5 / timed(work, 1))))
    end, best, blocks = time.perf_counter() + budget, float("inf"), 0
    while blocks < 3 or time.perf_counter() < end:
        best, blocks = min(best, timed(work, calls) / calls), blocks + 1
    return best


def _cpu_block(work: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - start


def _cuda_block(work: Callable[[], object], calls: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3
