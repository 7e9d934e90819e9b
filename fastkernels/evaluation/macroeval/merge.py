"""Runs of one candidate set from many machines as one run; what must not be mixed is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import Machine, ModelResult, RunResult
from fastkernels.evaluation.macroeval.score import set_digest

SCENARIO_DIGEST = "scenario digest"
LIBRARIES = ("torch", "transformers", "triton", "fastkernels")
Key = tuple[str, str, int]


def merge(runs: Sequence[RunResult], *, force: bool = False) -> list[RunResult]:
    """One run for each candidate set (equal digests), in the order in which the sets first appear.

    A merged run says in its settings what it was made of: ``merged``, and ``forced`` where something was overruled.

    Args:
        force: mix runs that differ, and where a set holds a model twice keep what the newer run says of it.

    Raises:
        EvaluationError: no runs; or, unless forced, two that differ in protocol, scenario, device or library versions,
            or that, with the same candidates, differ in settings or evaluated the same model.
    """
    if not runs:
        raise EvaluationError("no runs to merge. Give result.json files, or folders of runs.")
    ordered = [run for i, run in enumerate(runs) if run not in runs[:i]]  # one file given twice is one run
    told = [said for one, two in combinations(ordered, 2) if (said := _difference(one, two))]
    if told and not force:
        raise EvaluationError(f"{told[0]}. Score them apart, or mix them all the same with --force.")
    sets: dict[str, list[RunResult]] = {}
    for run in ordered:
        sets.setdefault(set_digest(run), []).append(run)
    return [_merged(same, told, force=force) for same in sets.values()]


def _difference(one: RunResult, two: RunResult) -> str:
    """What forbids to mix the two, in words; empty where nothing does."""
    first, second = _fingerprint(one), _fingerprint(two)
    parts = [f"{f} ({first[f]} and {second[f]})" for f in first if first[f] != second[f]]
    if set_digest(one) == set_digest(two):
        first, second = settings_of(one), settings_of(two)
        names = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
        parts += [f"setting {n} ({first.get(n)} and {second.get(n)})" for n in names]
    return f"runs {_named(one)} and {_named(two)} differ in {', '.join(parts)}" if parts else ""


def scenario_of(run: RunResult) -> str:
    """Digest of the scenario's content, or its name where the run does not tell it."""
    return run.settings.get(SCENARIO_DIGEST, run.scenario)


def settings_of(run: RunResult) -> dict[str, str]:
    """The settings that the candidates ran under: not the scenario, nor what was merged."""
    return {name: v for name, v in run.settings.items() if name not in (SCENARIO_DIGEST, "merged", "forced")}


def _fingerprint(run: RunResult) -> dict[str, object]:
    versions = {name: run.machine.versions.get(name) for name in LIBRARIES}
    return {"protocol": run.protocol, "scenario": scenario_of(run), "device": run.machine.device, **versions}


def _named(run: RunResult) -> str:
    """A run's id is the name of its folder, which may be that of another run elsewhere."""
    return f"{run.id} ({run.date}, host {run.machine.host or 'unknown'})"


def _merged(runs: list[RunResult], told: list[str], *, force: bool) -> RunResult:
    """Runs of one candidate set as one, named after all, dated as the newest."""
    kept: dict[Key, tuple[RunResult, list[ModelResult]]] = {}
    for run in sorted(runs, key=lambda r: r.date):
        entries: dict[Key, list[ModelResult]] = {}
        for model in run.models:  # a scenario may hold a model twice, with other workloads
            entries.setdefault((model.model, model.dtype, model.tp), []).append(model)
        for key, models in entries.items():
            if key in kept:
                said = f"{key[0]} ({key[1]}, tp {key[2]}) is in run {_named(kept[key][0])} and in run {_named(run)}"
                if not force:
                    raise EvaluationError(f"{said}, with the same candidates. Give one, or --force: the newer counts.")
                told = [*told, f"{said}: the newer, of {run.date}, counts"]
            kept[key] = (run, models)
    newest = max(runs, key=lambda r: r.date)
    if len(runs) == 1 and not told:
        return newest
    settings = dict(newest.settings)
    if len(runs) > 1:
        settings["merged"] = f"merged from {len(runs)} runs: {', '.join(r.id for r in runs)}"
    if told:
        settings["forced"] = "mixed by force: " + "; ".join(told)
    return newest.model_copy(
        update={
            "id": "+".join(r.id for r in runs),
            "machine": _machines([r.machine for r in runs]),
            "command": "\n".join(dict.fromkeys(r.command for r in runs)),
            "settings": settings,
            "models": [m for _, models in kept.values() for m in models],
        }
    )


def _machines(machines: list[Machine]) -> Machine:
    names = dict.fromkeys(name for m in machines for name in m.versions)
    return Machine(
        device=_all(m.device for m in machines),
        count=sum(m.count for m in {m.host: m for m in machines}.values()),
        versions={name: _all(m.versions.get(name, "none") for m in machines) for name in names},
        host=_all(m.host for m in machines),
    )


def _all(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
