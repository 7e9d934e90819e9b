"""Candidate sets side by side, over the same models, best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, Field

from fastkernels.evaluation.e2e.result import Interval, ModelResult, RunResult
from fastkernels.evaluation.macroeval.merge import merge
from fastkernels.evaluation.macroeval.result import Score, shown
from fastkernels.evaluation.macroeval.score import score

MISSING = "not evaluated with this candidate set"


class Standing(BaseModel):
    """One candidate set among the others."""

    rank: int = Field(description="from 1; equal scores share one")
    score: Score
    tied: bool = Field(description="another set has exactly this score")
    overlaps: list[int] = Field(
        default_factory=list, description="positions, from 1, of sets whose interval overlaps: not told apart"
    )
    missing: int = Field(default=0, description="models that only other sets were evaluated on; they count as 0")


class Leaderboard(BaseModel):
    """Candidate sets, highest score first."""

    standings: list[Standing]

    def text(self) -> str:
        """A line for each set, then each score in full."""
        lines = [
            f"{s.rank}. {s.score.candidates} ({s.score.digest}): {shown(s.score.score)} {self.told(s)}".rstrip()
            for s in self.standings
        ]
        return "\n\n".join(["\n".join(lines), *(s.score.text() for s in self.standings)])

    def told(self, standing: Standing) -> str:
        """What a reader must know beside the score: ties, overlapping intervals, models that are missing."""
        parts = ["tied"] if standing.tied else []
        near = [self.standings[i - 1].score for i in standing.overlaps]
        if near:
            parts.append(f"not told apart from {', '.join(f'{s.candidates} ({s.digest})' for s in near)}")
        if standing.missing:
            parts.append(f"models not evaluated, counted as 0: {standing.missing}")
        return "; ".join(parts)


def leaderboard(runs: Sequence[RunResult], *, force: bool = False) -> Leaderboard:
    """Merges the runs by candidate set and ranks the sets.

    Every set is scored over the models of all sets: one that it was not evaluated on counts as a failure.

    Raises:
        EvaluationError: as ``merge`` and ``score``.
    """
    sets = merge(runs, force=force)
    entries: Counter[tuple[str, str, int]] = Counter()
    examples: dict[tuple[str, str, int], ModelResult] = {}
    for run in sets:
        entries |= Counter(_key(m) for m in run.models)
        examples |= {_key(m): m for m in run.models if _key(m) not in examples}
    filled: list[tuple[Score, int]] = []
    for run in sets:
        absent = list((entries - Counter(_key(m) for m in run.models)).elements())
        models = [*run.models, *(_failed(examples[key]) for key in absent)]
        filled.append((score(run.model_copy(update={"models": models})), len(absent)))
    filled.sort(key=lambda s: -s[0].score.value)
    scores = [s for s, _ in filled]
    return Leaderboard(
        standings=[
            Standing(
                rank=1 + sum(other.score.value > s.score.value for other in scores),
                score=s,
                tied=sum(other.score.value == s.score.value for other in scores) > 1,
                overlaps=[
                    j for j, o in enumerate(scores, 1) if j != i and overlap(s.score, o.score) and o.score != s.score
                ],
                missing=missing,
            )
            for i, (s, missing) in enumerate(filled, 1)
        ]
    )


def overlap(one: Interval, two: Interval) -> bool:
    """Whether two intervals share a point: the values are not told apart then."""
    return one.low <= two.high and two.low <= one.high


def _key(model: ModelResult) -> tuple[str, str, int]:
    return (model.model, model.dtype, model.tp)


def _failed(model: ModelResult) -> ModelResult:
    kept = model.model_dump(include={"model", "family", "category", "dtype", "tp", "weights"})
    return ModelResult(**kept, valid=False, passed=False, reason=MISSING)
