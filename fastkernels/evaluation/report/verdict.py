"""The run in one sentence: how much faster, on how many models, how right; or why it says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastkernels.evaluation.e2e.result import Interval, ModelResult, RunResult
from fastkernels.evaluation.report.numbers import short_ratio

NULL_LOW, NULL_HIGH = 0.98, 1.02  # outside, the machinery itself moves the clock
AS_CLOSE = 0.995  # C from here on rounds to 1.00: production's own distance to the oracle
PRECISIONS = {"float32": "fp32", "fp32": "fp32", "float64": "fp64", "fp64": "fp64"}
REASONS_SHOWN, REASON_CHARACTERS = 3, 240


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``state``: every model passed, some did, or none; ``speedup`` is over the passed ones."""

    state: Literal["passed", "partly", "failed"]
    sentence: str
    speedup: Interval | None


def verdict(run: RunResult, speedup: Interval | None) -> Verdict:
    """Judges a run. Models that are invalid or whose gate is red give no speed-up, and are named with their reason.

    Args:
        speedup: of the models that passed: MacroEval's ``S_passed``.
    """
    passed = [m for m in run.models if counts(m)]
    failed = [m for m in run.models if not counts(m)]
    if not passed:
        none = "no model was run" if not failed else f"{_of(len(failed))} failed: {_reasons(failed)}"
        return Verdict(state="failed", sentence=f"{run.candidates} scores 0: {none}", speedup=None)
    sentence = f"{run.candidates} {_speed(speedup)} {_on(passed, run)}, {_outputs(passed)}"
    if slower := _slower(passed):
        sentence += f"; slower on {slower}"
    if odd := _odd_nulls(passed):
        sentence += f"; the null arm is off 1.00 on {odd}, so that much is not the candidates' doing"
    if failed:
        sentence += f"; {_of(len(failed))} failed: {_reasons(failed)}"
    return Verdict(state="partly" if failed else "passed", sentence=sentence, speedup=speedup)


def counts(model: ModelResult) -> bool:
    """Whether a model's speed may be shown: the run is valid and its gate green."""
    return model.valid and model.passed


def _speed(speedup: Interval | None) -> str:
    if speedup is None:
        return "was not timed"
    told = f"is {short_ratio(speedup)} as fast as the strongest unpatched run"
    return told if speedup.low > 1 or speedup.high < 1 else f"{told} (no difference)"


def _on(passed: list[ModelResult], run: RunResult) -> str:
    if len(run.models) == 1:
        return f"on {passed[0].model}"
    return f"on {len(passed)} of {len(run.models)} models"


def _outputs(passed: list[ModelResult]) -> str:
    worst = min(passed, key=lambda m: m.score)
    if worst.score >= AS_CLOSE:
        return f"with outputs as close to {_oracle(passed)} as production's own"
    where = f" on {worst.model}" if len(passed) > 1 else ""
    return (
        f"with outputs farther from {_oracle(passed)} than production's own "
        f"(C = {worst.score:.2f}{where}; 1 is production, 0 the known-bad control)"
    )


def _oracle(passed: list[ModelResult]) -> str:
    """The oracle by its precision, where the results name one."""
    kinds = {
        PRECISIONS[k] for m in passed for c in m.correctness for k in PRECISIONS if k in c.oracle.partition(";")[0]
    }
    return f"the {' or '.join(sorted(kinds))} oracle" if kinds else "the oracle"


def beyond_noise(speedup: Interval, noise: Interval | None) -> Literal["faster", "slower"] | None:
    """What a workload is where the interval of its speed-up clears 1, and the noise of the unpatched run; else None.

    >>> beyond_noise(Interval(value=0.98, low=0.97, high=0.99), Interval(value=1, low=0.98, high=1.02))
    >>> beyond_noise(Interval(value=0.98, low=0.97, high=0.99), None)
    'slower'
    """
    low, high = (1.0, 1.0) if noise is None else (min(noise.low, 1.0), max(noise.high, 1.0))
    return "faster" if speedup.low > high else "slower" if speedup.high < low else None


def _slower(passed: list[ModelResult]) -> str:
    """Workloads that are surely slower, which a mean over all may hide."""
    found = [
        f"{m.model} {w.workload.name} ({w.speedup.value:.2f}x)"
        for m in passed
        for w in m.workloads
        if w.speedup is not None and beyond_noise(w.speedup, w.noise) == "slower"
    ]
    return _first(found)


def _first(found: list[str]) -> str:
    more = len(found) - REASONS_SHOWN
    return ", ".join(found[:REASONS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _odd_nulls(passed: list[ModelResult]) -> str:
    """Workloads whose null arm is surely off 1, beyond what is allowed."""
    odd = [
        f"{m.model} {w.workload.name} ({w.null.value:.2f}x)"
        for m in passed
        for w in m.workloads
        if w.null is not None and (w.null.high < NULL_LOW or w.null.low > NULL_HIGH)
    ]
    return _first(odd)


def _reasons(failed: list[ModelResult]) -> str:
    told = [f"{m.model}: {_short(why(m))}" for m in failed[:REASONS_SHOWN]]
    more = len(failed) - REASONS_SHOWN
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def why(model: ModelResult) -> str:
    """Why a model does not count, in its own words or in those of what failed."""
    arms = [f"{name} arm: {arm.reason}" for name, arm in model.arms.items() if arm.state == "failed"]
    gates = [
        f"{c.mode}: {c.reason or 'outputs as far from the oracle as the control'}"
        for c in model.correctness
        if not c.passed
    ]
    return next((r for r in (model.reason, *arms, *gates) if r), "it is not valid, and says not why")


def _of(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def _short(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= REASON_CHARACTERS else f"{line[: REASON_CHARACTERS - 1].rstrip()}…"
