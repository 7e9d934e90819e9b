"""A run with its verdict and its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import RunResult
from fastkernels.evaluation.macroeval.result import Score
from fastkernels.evaluation.macroeval.score import model_names, score
from fastkernels.evaluation.report.document import Tone
from fastkernels.evaluation.report.verdict import Verdict, counts, verdict, why


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A run with what is said of it. ``name`` tells it from the others; ``unscored`` says why there is no score."""

    run: RunResult
    name: str
    verdict: Verdict
    score: Score | None
    unscored: str

    @property
    def sign(self) -> tuple[str, Tone]:
        """A glyph and a tone: passed and faster, passed and not faster, passed in part, failed."""
        if self.verdict.state != "passed":
            return ("◐", "warn") if self.verdict.state == "partly" else ("✗", "bad")
        speedup = self.verdict.speedup
        if speedup is None or speedup.low <= 1:
            return ("▼" if speedup and speedup.high < 1 else "≈"), "warn"
        return "✓", "good"


def judge(runs: Sequence[RunResult]) -> list[Judged]:
    """Scores and judges each run by itself."""
    found = []
    names = [run.candidates for run in runs]
    for i, given in enumerate(runs):
        run = sound(given)
        scored, unscored = None, ""
        try:
            scored = score(run)
        except EvaluationError as error:
            unscored = str(error)
        name = names[i] if names.count(names[i]) == 1 else f"{names[i]} #{1 + names[:i].count(names[i])}"
        told = verdict(run, scored.S_passed if scored else None)
        found.append(Judged(run=run, name=name, verdict=told, score=scored, unscored=unscored))
    return found


def sound(run: RunResult) -> RunResult:
    """The run with its names apart, and with no pass and no speed-up where a model is invalid or its gate red."""
    models = []
    for name, model in zip(model_names(run.models), run.models, strict=True):
        changed: dict[str, object] = {"model": name, "passed": counts(model)}
        if not counts(model):
            nothing = {"speedup": None, "latency": None}
            changed |= {"reason": why(model), "workloads": [w.model_copy(update=nothing) for w in model.workloads]}
        models.append(model.model_copy(update=changed))
    return run.model_copy(update={"models": models})
