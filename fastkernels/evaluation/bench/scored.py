"""The score of a case: the best baseline's time over the candidate's, where the device can do the work in that.

Both sides are timed in one mode: as CUDA graphs, as engines run them, where both can be captured; else eager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastkernels.evaluation.bench.result import BaselineTiming, Failure, Mode, Timing
from fastkernels.evaluation.bench.roofline import Peaks, measured_peaks
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.times import TOO_NOISY, Contest
from fastkernels.evaluation.statistics import median_ratio
from fastkernels.tasks.task import Cost

CANDIDATE = "candidate"
KERNEL_SLACK, KERNEL_SECONDS = 1.3, 3e-6  # of observed calls, with cold caches and the profiler's own cost
SAME_KERNELS: tuple[Mode, ...] = ("eager", "graph")  # as were observed; compiled, others run
Timings = Mapping[Mode, Mapping[str, Timing]]


def scored(contests: Mapping[Mode, Contest], known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the case's result: all timings and ratios, and which of the modes is scored.

    A baseline named in ``known`` under ``best_baseline`` is what the ratios are to, whichever is the best.
    """
    timings: Timings = {
        m: {n: t.timing(c.fixed) for n, t in c.times.items()} for m, c in contests.items() if CANDIDATE in c.times
    }
    given = known.get("best_baseline")
    best = {m: n for m, found in timings.items() if (n := _best(found, given)) is not None}
    if not best:
        return {}
    ratios = {m: median_ratio(*(contests[m].times[s].per_call(contests[m].fixed) for s in (n, CANDIDATE)))
              for m, n in best.items()}  # fmt: skip
    mode, notes = _mode(timings, best)
    ratio = ratios[mode]
    noisy = ratio.high > TOO_NOISY * ratio.low
    if noisy:
        notes.append(f"noise: no score above 1, for the ratio lies in {ratio.low:.2f} to {ratio.high:.2f}")
    names = dict.fromkeys(n for found in timings.values() for n in found if n != CANDIDATE)
    return {
        "notes": notes,
        "timing": {m: found[CANDIDATE] for m, found in timings.items()},
        "baselines": [
            BaselineTiming(name=n, modes={m: found[n] for m, found in timings.items() if n in found}) for n in names
        ],
        "mode": mode,
        "best_baseline": best[mode],
        "ratio": ratio,
        "ratios": ratios,
        "score": min(ratio.value, 1.0) if noisy or known.get("delegates") else ratio.value,
    }


def clocks_differ(fields: dict[str, Any], kernel_seconds: float | None) -> list[Failure]:
    """Notes the profiler's sum of kernel times; a failure where it exceeds what the wall clock of the scored mode has
    room for. None says nothing: no kernel was seen."""
    timings = fields.get("timing", {})
    timing = timings.get(fields.get("mode"))
    if timing is None or kernel_seconds is None:
        return []
    for mode in timings.keys() & set(SAME_KERNELS):
        timings[mode] = timings[mode].model_copy(update={"kernel_seconds": kernel_seconds})
    if fields["mode"] not in SAME_KERNELS or kernel_seconds <= KERNEL_SLACK * timing.high + KERNEL_SECONDS:
        return []
    detail = f"kernels ran for {kernel_seconds * 1e6:.1f} us by the profiler, a call takes {timing.high * 1e6:.1f} us"
    return [Failure(code="CLOCK_MISMATCH", where="timed calls", detail=detail)]


def below_roofline(site: Site, fields: dict[str, Any]) -> list[Failure]:
    """Fills in the share of the roofline; a failure where the candidate is faster than the device can be, in any mode.

    The trusted baselines' own times in the mode raise the peaks: those are no miracles.
    """
    if "timing" not in fields:
        return []
    cost = Cost(bytes=fields["bytes"], flops=fields["flops"])
    measured = measured_peaks(site.device, site.dtype)
    found = []
    for mode, timing, peaks in _raised(measured, cost, fields):
        if mode == fields["mode"]:
            fields["roofline_share"] = peaks.share(cost, timing.seconds)
            fields["bound"] = peaks.bound(cost)
        if peaks.impossible(cost, timing.high):
            floor = peaks.floor_seconds(cost)
            detail = f"{mode}: {timing.high * 1e6:.2f} us a call at most, the device needs {floor * 1e6:.2f} us"
            found.append(Failure(code="BELOW_ROOFLINE", where="timed calls", detail=detail))
    return found


def _raised(peaks: Peaks, cost: Cost, fields: Mapping[str, Any]) -> Iterator[tuple[Mode, Timing, Peaks]]:
    """The candidate's timing in each mode, with the peaks that the baselines showed there."""
    for mode, timing in fields["timing"].items():
        trusted = [b.modes[mode].seconds for b in fields["baselines"] if mode in b.modes]
        yield mode, timing, peaks.raised(cost, min(trusted)) if trusted else peaks


def _best(found: Mapping[str, Timing], given: str | None) -> str | None:
    """The baseline that is compared with in one mode; None where the ``given`` one did not run in it."""
    if given is not None:
        return given if given in found else None
    return min((n for n in found if n != CANDIDATE), key=lambda n: found[n].seconds, default=None)


def _mode(timings: Timings, best: Mapping[Mode, str]) -> tuple[Mode, list[str]]:
    """Which mode is scored: graph, unless the candidate or the best of all baselines cannot be captured."""
    if "graph" not in best:
        return next(iter(best)), []
    limit = timings["graph"][best["graph"]].seconds
    eager = timings["eager"] if "eager" in best else {}
    faster = [n for n, t in eager.items() if n != CANDIDATE and n not in timings["graph"] and t.seconds < limit]
    if not faster:
        return "graph", []
    return "eager", [f"scored in eager mode: {faster[0]} is no graph, and still faster than all that are"]
