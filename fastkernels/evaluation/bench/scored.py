"""The score of a case: the best baseline's time over the candidate's, where the device can do the work in that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastkernels.evaluation.bench.result import BaselineTiming, Failure, Mode
from fastkernels.evaluation.bench.roofline import measured_peaks
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.timed import TOO_NOISY, Contest
from fastkernels.evaluation.statistics import median_ratio
from fastkernels.tasks.task import Cost

CANDIDATE = "candidate"
KERNEL_SLACK, KERNEL_SECONDS = 1.3, 3e-6  # one observed call, with cold caches and the profiler's own cost


def scored(contests: Mapping[Mode, Contest], known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the case's result: all timings in all modes, and the ratio in eager mode.

    A baseline named in ``known`` under ``best_baseline`` is what the ratio is to, whichever is the best.
    """
    timings = {m: {n: t.timing(c.fixed) for n, t in c.times.items()} for m, c in contests.items()}
    if "eager" not in timings:
        return {}
    eager, contest = timings["eager"], contests["eager"]
    best = known.get("best_baseline") or min((n for n in eager if n != CANDIDATE), key=lambda n: eager[n].seconds)
    times = {n: t.per_call(contest.fixed) for n, t in contest.times.items()}
    ratio = median_ratio(times[best], times[CANDIDATE])
    names = [n for n in eager if n != CANDIDATE]
    noisy = ratio.high > TOO_NOISY * ratio.low
    notes = [f"too noisy to score above 1: the ratio lies in {ratio.low:.2f} to {ratio.high:.2f}"] if noisy else []
    return {
        "notes": notes,
        "timing": {m: found[CANDIDATE] for m, found in timings.items()},
        "baselines": [
            BaselineTiming(name=n, modes={m: found[n] for m, found in timings.items() if n in found}) for n in names
        ],
        "mode": "eager",
        "best_baseline": best,
        "ratio": ratio,
        "score": min(ratio.value, 1.0) if noisy or known.get("delegates") else ratio.value,
    }


def clocks_differ(fields: dict[str, Any], kernel_seconds: float | None) -> list[Failure]:
    """Notes the profiler's sum of kernel times; a failure where it exceeds what the wall clock has room for."""
    if "timing" not in fields or kernel_seconds is None:
        return []
    timing = fields["timing"]["eager"]
    fields["timing"]["eager"] = timing.model_copy(update={"kernel_seconds": kernel_seconds})
    if kernel_seconds <= KERNEL_SLACK * timing.high + KERNEL_SECONDS:
        return []
    detail = f"kernels ran for {kernel_seconds * 1e6:.1f} us by the profiler, a call takes {timing.high * 1e6:.1f} us"
    return [Failure(code="CLOCK_MISMATCH", where="timed calls", detail=detail)]


def below_roofline(site: Site, fields: dict[str, Any]) -> list[Failure]:
    """Fills in the share of the roofline; a failure where the candidate is faster than the device can be.

    The trusted baselines' own times raise the peaks: those are no miracles.
    """
    if "timing" not in fields:
        return []
    timing = fields["timing"]["eager"]
    trusted = min(b.modes["eager"].seconds for b in fields["baselines"])
    cost = Cost(bytes=fields["bytes"], flops=fields["flops"])
    peaks = measured_peaks(site.device, site.dtype).raised(cost, trusted)
    fields["roofline_share"] = peaks.share(cost, timing.seconds)
    fields["bound"] = peaks.bound(cost)
    if not peaks.impossible(cost, timing.high):
        return []
    detail = f"{timing.high * 1e6:.2f} us a call at most, the device needs {peaks.floor_seconds(cost) * 1e6:.2f} us"
    return [Failure(code="BELOW_ROOFLINE", where="timed calls", detail=detail)]
