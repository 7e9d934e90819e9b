"""What a bench says: one record a case, the score over all of them, and the public benchmark's JSON."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fastkernels.evaluation.bench.reasons import REASONS, Status, status_of
from fastkernels.evaluation.e2e.result import Interval, Machine

Mode = Literal["eager", "compiled", "graph"]
HIGHEST_RATIO = 100.0  # what one case may bring into the mean, whatever it reads


class Timing(BaseModel):
    """Of one call, in seconds: ``seconds`` is the wall clock's slope, ``low`` and ``high`` its 95% interval."""

    seconds: float = Field(gt=0)
    low: float
    high: float
    event_seconds: float | None = Field(default=None, description="by the process's own CUDA events")
    kernel_seconds: float | None = Field(default=None, description="sum of the profiler's kernel times")


class BaselineTiming(BaseModel):
    """One baseline in each mode that it ran in."""

    name: str
    modes: dict[Mode, Timing] = Field(default_factory=dict)


class Failure(BaseModel):
    """One rule broken: its code, which inputs or stage it was seen on, and what was seen there."""

    code: str
    where: str
    detail: str

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.code not in REASONS:
            raise ValueError(f"{self.code} is no code. Codes: {', '.join(REASONS)}.")
        return self

    def __str__(self) -> str:
        return f"{self.code} {self.where}: {self.detail}" if self.where else f"{self.code}: {self.detail}"


class CaseResult(BaseModel):
    """One candidate on one case in one dtype. ``gate`` is True where nothing failed; else the score is 0."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    task: str
    level: int
    case: str
    dtype: str
    device: str
    candidate: str = ""
    shapes: str = ""
    source: Literal["synthetic", "captured"] = "synthetic"
    status: Status
    gate: bool
    failures: list[Failure] = Field(default_factory=list)
    error: float | None = Field(default=None, description="worst relative l2 distance to the float64 reference")
    limit: float | None = Field(default=None, description="what the accuracy class allows where `error` was seen")
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    matched_ratio: float | None = Field(default=None, description="least share of elements within the limit")
    timing: dict[Mode, Timing] = Field(default_factory=dict)
    baselines: list[BaselineTiming] = Field(default_factory=list)
    mode: Mode | None = Field(default=None, description="of both sides of `ratio`; None: each in its fastest")
    best_baseline: str | None = Field(default=None, description="the fastest in `mode`")
    ratio: Interval | None = Field(default=None, description="time of the best baseline over the candidate's")
    ratios: dict[Mode, Interval] = Field(
        default_factory=dict, description="the same in each mode that both ran in, to the baseline that is best there"
    )
    score: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    bytes: int = Field(default=0, description="least that must cross memory in a call")
    flops: int = Field(default=0, description="least floating-point operations of a call")
    roofline_share: float | None = Field(default=None, description="time at measured peaks over the time of a call")
    bound: Literal["memory", "compute"] | None = Field(default=None, description="which peak is nearer")
    delegates: bool = Field(default=False, description="forward only calls the reference: never above 1")
    kernels: list[str] = Field(default_factory=list, description="what was seen to run")
    notes: list[str] = Field(default_factory=list)
    seconds: dict[str, float] = Field(
        default_factory=dict, description="that the bench took to judge, to watch, by mode"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        told = status_of(f.code for f in self.failures)
        if self.status != told:
            raise ValueError(f"status {self.status}, but its failures say {told}")
        if self.gate != (self.status == "PASSED"):
            raise ValueError(f"gate {self.gate} on a case that is {self.status}")
        if not self.gate and self.score:
            raise ValueError(f"score {self.score} on a case that is {self.status}: it is 0 there")
        if self.delegates and self.score > 1:
            raise ValueError(f"score {self.score} where the candidate only calls the reference: 1 at most")
        if self.ratios and (self.mode is None or self.ratios.get(self.mode) != self.ratio):
            raise ValueError(f"ratio {self.ratio} is not the one of mode {self.mode}")
        return self

    @property
    def mine(self) -> Timing | None:
        """The timing that is scored; None where nothing was timed."""
        return _fastest(self.timing, self.mode)

    @property
    def best(self) -> Timing | None:
        """The best baseline's timing; None where none was timed."""
        asked = [b for b in self.baselines if self.best_baseline in (None, b.name)]
        found = [t for b in asked if (t := _fastest(b.modes, self.mode)) is not None]
        return min(found, key=lambda t: t.seconds, default=None)

    @property
    def failed(self) -> bool:
        """Whether the gate fails: what is skipped neither passes nor fails."""
        return self.status not in ("PASSED", "SKIPPED")


class BenchResult(BaseModel):
    """Every case of a run. Nothing is dropped: what could not be imported is a failed case too."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    mode: str = Field(description="what was benched: candidates or self-test")
    candidate: str = Field(description="the candidates as they were asked for")
    digest: str = Field(default="", description="content hash of the candidates' files")
    machine: Machine
    measured_at: str = ""
    seconds: float = 0.0
    cases: list[CaseResult] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def score(self) -> float:
        """``geometric_mean`` over all cases."""
        return geometric_mean(self.cases)

    @property
    def failed(self) -> list[CaseResult]:
        """Cases whose gate fails."""
        return [c for c in self.cases if c.failed]

    def public(self) -> dict[str, Any]:
        """The same run in the public benchmark's bench JSON; times are in milliseconds, of one call."""
        count = [c.status for c in self.cases]
        passed, skipped = count.count("PASSED"), count.count("SKIPPED")
        return {
            "mode": self.mode,
            "passed": passed,
            "failed": len(self.failed),
            "skipped": skipped,
            "all_passed": passed > 0 and not self.failed,
            "scenarios": [_public(c) for c in self.cases],
        }


def geometric_mean(cases: list[CaseResult]) -> float:
    """Geometric mean of the scores: 0 where one case fails or none was judged.

    A case that the candidate declines runs the production kernel, so it counts 1, or the mean of the others where
    that is below 1: declining raises nothing. A dtype that is declined in every case of a task is left out.
    """
    if any(c.failed for c in cases):
        return 0.0
    judged = [c for c in cases if c.gate]
    scores = [c.score for c in judged]
    if not scores or min(scores) <= 0:
        return 0.0
    logs = [math.log(min(s, HIGHEST_RATIO)) for s in scores]
    taken = {(c.task, c.candidate, c.dtype) for c in judged}
    declined = sum(1 for c in cases if c.status == "SKIPPED" and (c.task, c.candidate, c.dtype) in taken)
    mean = sum(logs) / len(logs)
    return math.exp((sum(logs) + declined * min(0.0, mean)) / (len(logs) + declined))


def _fastest(modes: dict[Mode, Timing], mode: Mode | None) -> Timing | None:
    wanted = [t for name, t in modes.items() if mode in (None, name)]
    return min(wanted, key=lambda t: t.seconds, default=None)


def _public(case: CaseResult) -> dict[str, Any]:
    """One row of the public JSON; numbers that are not finite are null; a red gate has speed-up 0."""
    mine, best = case.mine, case.best
    return {
        "op": case.task,
        "level": case.level,
        "shape": case.shapes or case.case,
        "dtype": case.dtype,
        "status": case.status,
        "max_abs_error": _finite(case.max_abs_error),
        "max_rel_error": _finite(case.max_rel_error),
        "matched_ratio": _finite(case.matched_ratio),
        "candidate_ms": mine.seconds * 1e3 if mine else None,
        "baseline_ms": best.seconds * 1e3 if best else None,
        "speedup": case.score if case.gate else 0.0,
        "detail": "; ".join([*map(str, case.failures), *case.notes]),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
