"""MacroEval's score = S x C x Cov of one run, with the noise of the rounds carried through to it."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import ModelResult, RunResult, WorkloadResult
from fastkernels.evaluation.macroeval.result import CategoryScore, ModelScore, Score
from fastkernels.evaluation.statistics import RESAMPLES, Draws, interval, latency_draws, picks, ratio_draws

NOTHING: Draws = np.zeros(1 + RESAMPLES)


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """Of a model that passed, in each draw."""

    thru: Draws
    lat: Draws

    @property
    def speed(self) -> Draws:
        return np.sqrt(self.thru * self.lat)


def score(run: RunResult) -> Score:
    """Scores one run, which may be several merged. Failures count as 0; none is dropped.

    In each of 2000 draws the rounds of every workload are drawn anew and independently, both arms and both of
    throughput and latency by the same rounds; intervals hold 95% of the draws. C and Cov carry none.

    Raises:
        EvaluationError: the run holds no model, or a model that passed without rounds that can be summarised.
    """
    if not run.models:
        raise EvaluationError(f"run {run.id}: no model was evaluated, so there is nothing to score.")
    names = model_names(run.models)
    speeds = {n: _speed(n, m) for n, m in zip(names, run.models, strict=True) if m.passed}
    models = [_model(n, m, speeds.get(n)) for n, m in zip(names, run.models, strict=True)]
    grouped: dict[str, list[ModelScore]] = {}
    for m in models:
        grouped.setdefault(m.category, []).append(m)
    drawn = {c: _geometric(speeds[m.model].speed for m in group if m.passed) for c, group in grouped.items()}
    categories = [_category(c, group, drawn[c]) for c, group in grouped.items()]
    S = _geometric(drawn.values())
    passed = [d for c, d in zip(categories, drawn.values(), strict=True) if c.passed]
    C, Cov = _mean([c.C for c in categories]), _mean([c.Cov for c in categories])
    return Score(
        candidates=run.candidates,
        digest=set_digest(run),
        scenario=run.scenario,
        device=run.machine.device,
        score=interval(S * C * Cov),
        S=interval(S),
        S_passed=interval(_geometric(passed)) if passed else None,
        C=C,
        Cov=Cov,
        noise=_mean([abs(w.noise.value - 1) for m in run.models for w in m.workloads if w.noise is not None]),
        categories=categories,
        models=models,
        notes=[run.settings[key] for key in ("merged", "forced") if key in run.settings],
    )


def set_digest(run: RunResult) -> str:
    """Content hash of the candidate set, 12 hexadecimal digits; of its name where no candidate could be read."""
    content = "\n".join(f"{task} {digest}" for task, digest in sorted(run.digests.items())) or run.candidates
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def model_names(models: Sequence[ModelResult]) -> list[str]:
    """Names that tell the models of one run apart: dtype, tp and a number are added only where they must be."""
    names = _told_apart([m.model for m in models], lambda i: f"{models[i].model} {models[i].dtype} tp{models[i].tp}")
    return _told_apart(names, lambda i: f"{names[i]} #{1 + names[:i].count(names[i])}")


def _told_apart(names: list[str], longer: Callable[[int], str]) -> list[str]:
    times = Counter(names)
    return [longer(i) if times[name] > 1 else name for i, name in enumerate(names)]


def _speed(name: str, model: ModelResult) -> _Speed:
    if not model.workloads:
        raise EvaluationError(
            f"{name}: passed without a workload, so it has no speed. The result is broken: run again."
        )
    drawn = [_workload(name, i, w) for i, w in enumerate(model.workloads)]
    return _Speed(thru=_geometric(t for t, _ in drawn), lat=_geometric(lat for _, lat in drawn))


def _workload(name: str, index: int, workload: WorkloadResult) -> tuple[Draws, Draws]:
    label = f"{name} {workload.workload.name}"
    seed = zlib.crc32(f"{label} {index}".encode())  # its own draws, whatever else the run holds
    try:
        drawn = picks(len(workload.rounds), seed=seed)
        throughput = ratio_draws(workload.rounds, "baseline", "candidate", drawn)
        return throughput, latency_draws(workload.rounds, "baseline", "candidate", drawn)
    except KeyError as error:
        raise EvaluationError(f"{label}: a round lacks the arm {error}. The result is broken: run again.") from error
    except EvaluationError as error:
        raise EvaluationError(f"{label}: {error}") from error


def _model(name: str, model: ModelResult, speed: _Speed | None) -> ModelScore:
    return ModelScore(
        model=name,
        category=model.category,
        passed=model.passed,
        speed=None if speed is None else interval(speed.speed),
        thru=None if speed is None else interval(speed.thru),
        lat=None if speed is None else interval(speed.lat),
        C=model.score,
        reason=model.reason,
    )


def _category(name: str, models: list[ModelScore], speed: Draws) -> CategoryScore:
    passed = sum(m.passed for m in models)
    return CategoryScore(
        category=name,
        S=interval(speed),
        C=_mean([m.C for m in models]),
        Cov=passed / len(models),
        models=len(models),
        passed=passed,
    )


def _geometric(parts: Iterable[Draws]) -> Draws:
    """Geometric mean in each draw: 0 where one part is, and where there is none."""
    values = np.array(list(parts))
    if values.size == 0 or (values == 0).any():
        return NOTHING
    return np.exp(np.log(values).mean(axis=0))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
