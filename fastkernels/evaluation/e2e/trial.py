"""Which way an arm runs: each is timed, the fastest is taken. The baseline is the strongest unpatched one, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastkernels.evaluation.e2e.contest import COMPILE_SECONDS, Contest, as_json
from fastkernels.evaluation.e2e.journal import Tried
from fastkernels.evaluation.e2e.result import ArmName, Trial

PASSES = 2


def choose(contest: Contest, name: ArmName, modes: Sequence[str]) -> Tried:
    """Times an arm in each of ``modes``; the fastest over all workloads, geometrically, is its own.

    Raises:
        ArmFailed: it runs in none of them.
    """
    known = contest.journal.tried(name)
    if known is not None:
        return known
    trials = [_timed(contest, name, mode) for mode in modes]
    if not any(t.seconds for t in trials):
        raise contest.broken[name, modes[0]]
    best = min((t for t in trials if t.seconds), key=_geometric)
    for trial in trials:
        trial.chosen = trial is best
        if not trial.chosen and not trial.reason:
            trial.reason = f"{_geometric(trial) / _geometric(best):.2f}x the seconds of {best.name}"
    at_least = contest.spec.entry.block_seconds
    passes = {w: max(1, math.ceil(at_least / s)) for w, s in best.seconds.items()} if name == "baseline" else {}
    tried = Tried(arm=name, mode=best.name, trials=trials, passes=passes)
    contest.journal.append(tried)
    return tried


def _timed(contest: Contest, name: ArmName, mode: str) -> Trial:
    failure = contest.broken.get((name, mode))
    if failure is not None:
        return Trial(name=mode, seconds={}, reason=failure.reason[:300])
    contest.tell(f"trial of {name}, {mode}")
    seconds: dict[str, float] = {}
    for workload in contest.workloads:
        with contest.alone(name) as arm:
            arm.order("block", timeout=COMPILE_SECONDS, mode=mode, workload=as_json(workload), passes=PASSES)
        seconds[workload.name] = arm.seconds / PASSES
    return Trial(name=mode, seconds=seconds)


def _geometric(trial: Trial) -> float:
    return math.exp(sum(map(math.log, trial.seconds.values())) / len(trial.seconds))
