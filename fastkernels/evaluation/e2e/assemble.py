"""From the records of an entry to its result: complete rounds, ratios, and whether they may be shown at all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fastkernels.evaluation.e2e.families.family import Family
from fastkernels.evaluation.e2e.job import JobSpec
from fastkernels.evaluation.e2e.journal import Answered, Block, Checked, Covered, Ended, Journal
from fastkernels.evaluation.e2e.result import (
    ARMS,
    ArmName,
    ArmResult,
    ArmSpeed,
    Correctness,
    ModelResult,
    RoundSample,
    WorkloadResult,
)
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.evaluation.statistics import known_median, latency_ratio, noise, percentiles, ratio

SHOWN = 400  # raw latencies kept for plots
APART, APART_SECONDS = 0.05, 0.01  # of a block: share, and seconds
PLAUSIBLE = 0.98  # least share of timed outputs that the unpatched model would have given too


def assemble(
    spec: JobSpec,
    family: Family | None,
    workloads: Sequence[Workload],
    journal: Journal,
    *,
    why: str = "",
    seconds: float,
) -> ModelResult:
    """The result as far as the records go; ``why`` is a reason for 0 that no record holds."""
    from fastkernels.evaluation.e2e.weights import describe

    entry = spec.entry
    ended = {r.arm: r.result for r in journal.records if isinstance(r, Ended)}
    correctness = _correctness(journal)
    invalid = why or _invalid(journal, correctness, workloads, entry.rounds)
    red = next((c.reason for c in correctness if not c.passed), "")
    passed = not invalid and not red and bool(correctness)
    tried = journal.tried("baseline")
    answered = next((r for r in journal.records if isinstance(r, Answered)), None)
    coverage = next((r.coverage for r in journal.records if isinstance(r, Covered)), None)
    return ModelResult(
        model=entry.model,
        family=entry.workloads[0].partition(".")[0],
        category=entry.category or (family.category if family is not None else "unsupported"),
        dtype=entry.dtype,
        tp=entry.tp,
        weights=describe(entry),
        parameters=answered.parameters if answered is not None else None,
        baseline=tried.mode if tried is not None else "",
        trials=tried.trials if tried is not None else [],
        arms=ended,
        workloads=[w for w in (_workload(w, family, journal, show=passed) for w in workloads) if w is not None],
        correctness=correctness,
        coverage=coverage,
        valid=not invalid,
        passed=passed,
        reason=red or invalid,
        seconds=seconds,
    )


def _correctness(journal: Journal) -> list[Correctness]:
    """One for each mode: the worse of before and after the timed blocks, with the outputs of timed calls."""
    judged = {c.mode: c.model_copy() for c in journal.gated()}
    for late in (c.model_copy() for c in journal.gated(after=True)):
        early = judged.get(late.mode)
        if early is None or late.score < early.score or not late.passed:
            if early is not None and early.passed and not late.passed:
                late.reason = f"right before the timed calls, wrong after them: {late.reason}"
            judged[late.mode] = late
    checks = [r for r in journal.records if isinstance(r, Checked)]
    tried = journal.tried("candidate")
    timed = judged.get(tried.mode) if tried is not None else None
    if checks and timed is not None:
        worst = min(checks, key=lambda c: c.share)
        timed.timed_outputs = worst.share
        if worst.share < PLAUSIBLE:
            timed.passed, timed.score = False, 0.0
            timed.reason = (
                f"{1 - worst.share:.0%} of the outputs of a timed block ({worst.workload}, round {worst.round + 1}) "
                f"are none of the unpatched model's; at most {1 - PLAUSIBLE:.0%} may be. {worst.details}"
            )
    return list(judged.values())


def _invalid(journal: Journal, correctness: Sequence[Correctness], workloads: Sequence[Workload], rounds: int) -> str:
    """Why the run proves nothing, or nothing. A red gate before the rounds needs no rounds."""
    failed = journal.failed()
    if failed is not None:
        return f"{failed.arm} arm: {failed.result.reason}"
    if any(not c.passed for c in correctness):
        return ""
    ended = {r.arm: r.result for r in journal.records if isinstance(r, Ended)}
    missing = [arm for arm in ARMS if arm not in ended]
    if missing:
        return f"no evidence from the {' and '.join(missing)} arm: the run was not finished"
    baseline, null, candidate = (ended[arm] for arm in ARMS)
    if baseline.dispatchers or baseline.dispatcher_calls:
        return f"the baseline arm is patched: {baseline.dispatchers} dispatchers, {baseline.dispatcher_calls} calls"
    for name, arm in (("candidate", candidate), ("null", null)):
        if not arm.dispatchers:
            return f"nothing stands on the model of the {name} arm: it was not patched"
    unproven = _unproven(candidate)
    if unproven:
        return unproven
    checked = {r.workload for r in journal.records if isinstance(r, Checked)}
    for workload in workloads:
        if workload.name not in checked:
            return f"{workload.name}: no output of a timed call was checked"
        complete = len(_rounds(workload, journal))
        if complete < max(2, rounds / 2):
            rejected = [b.rejected for b in journal.rejected() if b.workload == workload.name]
            return (
                f"{workload.name}: {complete} of {rounds} rounds are complete ({rejected[0] if rejected else 'killed'})"
            )
    return _clocks_apart(journal)


def _unproven(candidate: ArmResult) -> str:
    """What is applied and did not show in the window. Inside a candidate that did show, a part may be fused away, as
    long as no call of it went to the original."""
    shown, report = candidate.interposition, candidate.patch
    if shown is None or report is None or not any(seen.proven for seen in shown.tasks.values()):
        return "no candidate showed in a window of real calls: nothing proves that one ran"
    alone = {site.task for site in report.applied if site.inside is None}
    silent = [t for t in shown.unproven if t in alone or shown.tasks[t].bypassed]
    whys = "; ".join(f"{task}: {shown.tasks[task].why_not}" for task in silent)
    return f"applied, but not seen in a window of real calls: {whys}" if whys else ""


def _clocks_apart(journal: Journal) -> str:
    """Where an arm's latencies, by its own clock, fall short of the evaluator's by more than the baseline's do."""
    lost: dict[tuple[str, ArmName], list[float]] = {}
    taken: dict[tuple[str, ArmName], list[float]] = {}
    for block in journal.blocks().values():
        key = block.workload, block.arm
        own = block.elapsed_ms or block.latency_ms
        lost.setdefault(key, []).append(block.seconds * block.passes - sum(own) / 1e3)
        taken.setdefault(key, []).append(block.seconds * block.passes)
    for (workload, arm), apart in lost.items():
        more = statistics.median(apart) - statistics.median(lost.get((workload, "baseline"), apart))
        if abs(more) > APART_SECONDS + APART * statistics.median(taken[workload, arm]):
            return (
                f"{workload}: the {arm} arm's latencies fall short of the evaluator's clock by {more:.3f} s more than "
                "the baseline's in a block: its times cannot be trusted"
            )
    return ""


def _workload(workload: Workload, family: Family | None, journal: Journal, *, show: bool) -> WorkloadResult | None:
    rounds = _rounds(workload, journal)
    if family is None or len(rounds) < 2:  # one has no interval
        return None
    blocks = [b for b in journal.blocks().values() if b.workload == workload.name]
    rejected = [b for b in journal.rejected() if b.workload == workload.name]
    own = {arm: sorted((b for b in blocks if b.arm == arm), key=lambda b: b.key) for arm in ARMS}
    first, second = _visits_of(own["baseline"])
    return WorkloadResult(
        workload=workload,
        unit=family.unit,
        arms={
            arm: _speed(own[arm], [r[arm] for r in rounds], rejected=sum(b.arm == arm for b in rejected))
            for arm in ARMS
        },
        rounds=rounds,
        speedup=ratio(rounds, base="baseline", other="candidate") if show else None,
        latency=latency_ratio(rounds, base="baseline", other="candidate") if show else None,
        null=ratio(rounds, base="baseline", other="null"),
        noise=noise(first, second),
    )


def _rounds(workload: Workload, journal: Journal) -> list[dict[ArmName, RoundSample]]:
    """Rounds in which every visit of every arm counts."""
    by_round: dict[int, dict[ArmName, list[Block]]] = {}
    for block in journal.blocks().values():
        if block.workload == workload.name:
            by_round.setdefault(block.round, {}).setdefault(block.arm, []).append(block)
    return [
        {arm: _sample(blocks[arm]) for arm in ARMS}
        for _, blocks in sorted(by_round.items())
        if all(len(blocks.get(arm, ())) == 2 for arm in ARMS)
    ]


def _sample(blocks: Sequence[Block]) -> RoundSample:
    def median(name: str) -> Any:
        values = [v for b in blocks for v in getattr(b, name)]
        return statistics.median(values) if values else None

    return RoundSample(
        seconds=statistics.mean(b.seconds for b in blocks),
        latency_ms=median("latency_ms"),
        ttft_ms=median("ttft_ms"),
        tpot_ms=median("tpot_ms"),
    )


def _visits_of(blocks: Sequence[Block]) -> tuple[list[float], list[float]]:
    """Seconds of an arm's first and second visits, of the rounds that have both."""
    seconds: dict[int, list[float]] = {}
    for block in blocks:
        seconds.setdefault(block.round, []).append(block.seconds)
    both = [pair for pair in seconds.values() if len(pair) == 2]
    return [a for a, _ in both], [b for _, b in both]


def _speed(blocks: Sequence[Block], samples: Sequence[RoundSample], *, rejected: int) -> ArmSpeed:
    seconds = statistics.median(s.seconds for s in samples)
    latencies = [v for b in blocks for v in b.latency_ms]
    ttft, tpot = ([v for b in blocks for v in getattr(b, name)] for name in ("ttft_ms", "tpot_ms"))
    joules = [b.joules / (b.tokens * b.passes) for b in blocks if b.joules is not None]
    return ArmSpeed(
        units_per_s=blocks[0].tokens / seconds,
        requests_per_s=blocks[0].requests / seconds,
        latency_ms=percentiles(latencies),
        ttft_ms=percentiles(ttft) if ttft else None,
        tpot_ms=percentiles(tpot) if tpot else None,
        latencies_ms=latencies[:: max(1, -(-len(latencies) // SHOWN))],
        blocks=len(blocks),
        rejected=rejected,
        joules_per_unit=known_median(joules),
        watts=known_median([b.watts for b in blocks]),
        celsius=known_median([b.celsius for b in blocks]),
        megahertz=known_median([b.megahertz for b in blocks]),
    )
