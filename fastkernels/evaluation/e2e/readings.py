"""Clocks, power and temperature of the device while arms run, sampled from the parent, and whether a block counts.

A block that ran on a throttling device, or on cores that others used too, says nothing about the arm."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch

from fastkernels.evaluation.e2e.cpu_sampler import CpuSample, CpuSampler
from fastkernels.evaluation.e2e.gpu_sampler import GpuSample, GpuSampler
from fastkernels.evaluation.statistics import known_median

# Bits of nvidia-smi's clocks_event_reasons.active.
IDLE, POWER_CAP = 0x1, 0x4
THROTTLES = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
OFTEN = 0.25  # share of a block's samples in which a reason must show, and of its core time that others may take
FALL = 0.10  # share by which the clock may be under the median of the blocks like this one
BLOCKS_KNOWN = 3  # blocks like this one before their median says something
NEAR_SECONDS = 0.25  # how far off a sample may be that stands for a block too short to have one
S = TypeVar("S", GpuSample, CpuSample)
TICKS_SECONDS = 0.3  # /proc/stat counts in ticks of 10 ms: over less, a share of stolen time is noise


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One block: medians of MHz, W and °C, and the energy in joules; None where the machine does not tell.

    ``throttled`` says why the block does not count; ``noted`` what may matter and is normal, a power cap under load.
    """

    megahertz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    joules: float | None = None
    throttled: str = ""
    noted: str = ""


class Readings:
    """Samples of one device from the start of the ``with`` block to its end.

    On a GPU they are nvidia-smi's; without it, or once it has died, readings are empty and ``noted`` says so. On a CPU
    they are Linux' own counters, and nothing elsewhere.
    """

    def __init__(self, device: str) -> None:
        self._gpu = torch.device(device).type == "cuda"
        self._sampler = GpuSampler(torch.device(device).index or 0) if self._gpu else CpuSampler()
        self._clocks: dict[str, list[float]] = defaultdict(list)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.stop()

    def between(self, start: float, end: float, *, group: str = "") -> Reading:
        """What was read from ``start`` to ``end``, in seconds of ``time.monotonic()``.

        ``group`` names the blocks whose clocks are alike, those of one arm on one workload: on a GPU a block whose
        clock is more than 10% under the median of its group so far is throttled, unless the power cap explains it or
        the GPU was idle. So is one with a hardware or thermal slowdown in a quarter of its samples; and on a CPU one
        that lost a quarter of its core time to other processes or to other machines on the host.
        """
        if isinstance(self._sampler, CpuSampler):
            return read_cpu(self._sampler.samples(), start, end)
        samples, known = self._sampler.samples(), self._clocks[group]
        reading = read_gpu(samples, start, end, usual=statistics.median(known) if len(known) >= BLOCKS_KNOWN else None)
        clock = loaded_clock(_within(samples, start, end))
        if clock is not None and not reading.throttled:
            known.append(clock)
        if self._sampler.failure and reading == Reading():
            return Reading(noted=self._sampler.failure)
        return reading


def read_gpu(samples: Sequence[GpuSample], start: float, end: float, *, usual: float | None = None) -> Reading:
    """The reading of a block from a GPU's samples, in order of time; ``usual`` is the clock of blocks like it."""
    own = _within(samples, start, end)
    if not own:
        return Reading()

    def share(bit: int) -> float:
        return sum(bool(s.reasons & bit) for s in own) / len(own)

    slowed = [f"{name} in {share(bit):.0%} of the samples" for bit, name in THROTTLES.items() if share(bit) >= OFTEN]
    capped = share(POWER_CAP)
    megahertz = known_median([s.megahertz for s in own if not s.reasons & IDLE])
    if not slowed and megahertz is not None and usual is not None and capped < OFTEN and megahertz < (1 - FALL) * usual:
        slowed.append(
            f"clock at {megahertz:.0f} MHz, {1 - megahertz / usual:.0%} under the {usual:.0f} MHz of its kind"
        )
    return Reading(
        megahertz=megahertz,
        watts=known_median([s.watts for s in own]),
        celsius=known_median([s.celsius for s in own]),
        joules=energy(own, start, end),
        throttled="; ".join(slowed),
        noted=f"power cap in {capped:.0%} of the samples" if capped else "",
    )


def loaded_clock(samples: Sequence[GpuSample]) -> float | None:
    """Median clock in MHz of the samples in which the GPU had work."""
    return known_median([s.megahertz for s in samples if not s.reasons & IDLE])


def read_cpu(samples: Sequence[CpuSample], start: float, end: float) -> Reading:
    """The reading of a block from a CPU's samples, in order of time.

    Others are judged by what they took: the time in which an arm's thread was ready and waited for a core, and the time
    in which a core was ready and the host gave it to another machine, each of the core time that was wanted, one core's
    at least. Load on cores that the arm does not use takes nothing.
    """
    own = _within(samples, start, end)
    if not own:
        return Reading()
    first, last = _around(samples, start, end)
    seconds = last.at - first.at
    waited, stolen = last.waited - first.waited, last.stolen - first.stolen
    losses = [("other processes", waited, last.ran - first.ran)]
    if seconds >= TICKS_SECONDS:
        losses.append(("other machines on the host", stolen, last.busy - first.busy))
    shares = {who: taken / max(taken + had, seconds) for who, taken, had in losses if taken > 0}
    lost = [f"{who} took {share:.0%} of the core time" for who, share in shares.items() if share > OFTEN]
    return Reading(
        megahertz=known_median([s.megahertz for s in own]),
        celsius=known_median([s.celsius for s in own]),
        throttled="; ".join(lost),
    )


def energy(samples: Sequence[GpuSample], start: float, end: float) -> float | None:
    """Joules from ``start`` to ``end``: the integral of the power, straight between samples and level before and after.

    >>> energy([GpuSample(at=1.0, watts=100.0), GpuSample(at=2.0, watts=300.0)], 0.0, 3.0)
    600.0
    """
    known = [(s.at, s.watts) for s in samples if s.watts is not None]
    if not known:
        return None
    points = [(start, known[0][1]), *((at, w) for at, w in known if start < at < end), (end, known[-1][1])]
    return sum((b - a) * (v + w) / 2 for (a, v), (b, w) in itertools.pairwise(points))


def _within(samples: Sequence[S], start: float, end: float) -> Sequence[S]:
    """The samples of a block; for one that is too short to have any, the nearest."""
    low, high = bisect.bisect_left(samples, start, key=_at), bisect.bisect_right(samples, end, key=_at)
    if low < high or not samples:
        return samples[low:high]
    nearest = min(samples[max(0, low - 1) : low + 1], key=lambda s: max(start - s.at, s.at - end))
    return [nearest] if start - NEAR_SECONDS <= nearest.at <= end + NEAR_SECONDS else []


def _around(samples: Sequence[CpuSample], start: float, end: float) -> tuple[CpuSample, CpuSample]:
    """The last sample before a block and the first after it, as far as there are any."""
    low, high = bisect.bisect_right(samples, start, key=_at), bisect.bisect_left(samples, end, key=_at)
    return samples[max(0, low - 1)], samples[min(high, len(samples) - 1)]


def _at(sample: GpuSample | CpuSample) -> float:
    return sample.at
