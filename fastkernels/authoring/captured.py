"""What captures say of a task's calls, as a stub's docstring lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastkernels.authoring.shapes import Shaped, shaped
from fastkernels.evaluation.capture.cases import calls_of, cases_of
from fastkernels.evaluation.capture.recipe import decode, dtype_of
from fastkernels.evaluation.capture.record import Capture, Phase, describe
from fastkernels.evaluation.capture.store import load_captures
from fastkernels.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Captured:
    """Captures, and what to call them in a sentence."""

    told: str
    captures: Sequence[Capture]

    def shapes(self, task: Task, *, limit: int) -> tuple[list[Shaped], int]:
        """The task's calls, the most frequent first, at most ``limit`` of them, and how many there are.

        What several captures have alike is told once. Calls that no file holds (a cache, an engine's attention) are
        told by their shapes alone, after those that the bench replays.
        """
        replayed: dict[str, tuple[int, Capture, int]] = {}
        for capture in self.captures:
            for number, call in enumerate(calls_of(capture, task)):
                key = repr((sorted(call.facts.items(), key=str), call.arguments, capture.dtype))
                before = replayed.get(key, (0, capture, number))
                replayed[key] = (before[0] + call.calls.total(), *before[1:])
        order = sorted(replayed.values(), key=lambda entry: -entry[0])
        found: list[Shaped] = []
        for _, capture, number in order[:limit]:
            case = cases_of(capture, task)[number]
            found += shaped(task, [case], dtype=dtype_of(capture.dtype))
        shown = list(self._not_replayed(task))
        return [*found, *shown[: limit - len(found)]], len(order) + len(shown)

    def _not_replayed(self, task: Task) -> Iterator[Shaped]:
        """Calls of open sites that make no case, over all layers."""
        merged: dict[str, tuple[Shaped, Counter[Phase]]] = {}
        for capture in self.captures:
            repeated = {repr(call.arguments) for call in calls_of(capture, task)}
            for site in capture.of(task.name):
                try:
                    init = {name: decode(value) for name, value in site.facts.items()}
                except ValueError:  # a fact that is no plain value: no candidate can be built for it from here
                    continue
                for variant in site.variants:
                    if site.gated or repr(variant.arguments) in repeated:
                        continue
                    told = tuple(map(describe, variant.arguments.values()))
                    one = Shaped(name="", init=init, arguments=told, cost=None)
                    merged.setdefault(repr((one.init, told)), (one, Counter()))[1].update(variant.calls)
        for one, calls in sorted(merged.values(), key=lambda entry: -entry[1].total()):
            phases = ", ".join(f"{count} {phase}" for phase, count in calls.items())
            yield Shaped(name=f"not replayed ({phases})", init=one.init, arguments=one.arguments, cost=None)


def captured(path: Path | str) -> Captured:
    """The capture at ``path``, or all those under it.

    Raises:
        EvaluationError: there is none, or one is not as it must be.
    """
    captures = load_captures(path)
    more = f", {len(captures)} captures" if len(captures) > 1 else ""
    return Captured(told=f"captured ({Path(path).name}{more})", captures=captures)
