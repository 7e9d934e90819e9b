"""One evaluation as one line of a history: its score, and what it may be compared with."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, Field

from fastkernels.evaluation.e2e.result import Interval, RunResult
from fastkernels.evaluation.macroeval.merge import LIBRARIES, scenario_of, settings_of
from fastkernels.evaluation.macroeval.result import Score


class HistoryRow(BaseModel):
    """One run, and how it stands to the run before it of the same candidates under the same conditions."""

    id: str
    date: str = Field(description="ISO 8601, UTC")
    scenario: str
    candidates: str = Field(description="as given to eval: its name through time, while the digest changes")
    digest: str = Field(description="of the candidate set, 12 hexadecimal digits")
    digests: dict[str, str] = Field(description="of each candidate, by task")
    device: str
    host: str = Field(description="hash of the host's name")
    versions: dict[str, str] = Field(description="of torch, transformers, triton and fastkernels")
    conditions: str = Field(
        description="hash of protocol, scenario, device, models and settings: only equal ones are compared"
    )
    score: Interval
    S: float
    C: float
    Cov: float
    noise: float = Field(description="mean distance of the unpatched run from itself, |A/A - 1|")
    before: str | None = Field(default=None, description="id of the run before; None where this is the first")
    difference: float | None = Field(default=None, description="score over that run's, less 1; None where that was 0")
    apart: bool | None = Field(
        default=None,
        description="a change: the intervals do not overlap, and the difference is larger than both noises",
    )

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it one run: its id is the name of a folder, which another may bear on another host or later."""
        return (self.id, self.date, self.host)

    def told(self) -> str:
        """The change in words; a difference inside the noise is called none."""
        if self.apart is None:
            return "first"
        if not self.apart:
            return "none beyond noise"
        if self.difference is None:
            return "up from 0"
        return "down to 0" if self.score.value == 0 else f"{self.difference:+.1%}"


def history_row(run: RunResult, score: Score) -> HistoryRow:
    """The line of ``run``, not yet compared with another."""
    return HistoryRow(
        id=run.id,
        date=run.date,
        scenario=run.scenario,
        candidates=run.candidates,
        digest=score.digest,
        digests=run.digests,
        device=run.machine.device,
        host=run.machine.host,
        versions={name: v for name in LIBRARIES if (v := run.machine.versions.get(name)) is not None},
        conditions=_conditions(run),
        score=score.score,
        S=score.S.value,
        C=score.C,
        Cov=score.Cov,
        noise=score.noise,
    )


def _conditions(run: RunResult) -> str:
    parts = [str(run.protocol), scenario_of(run), run.machine.device]
    parts += sorted(f"{m.model} {m.dtype} {m.tp}" for m in run.models)
    parts += sorted(f"{name} {value}" for name, value in settings_of(run).items())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
