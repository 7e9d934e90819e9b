"""Captured calls as cases of a task: captured values where they were kept, else random ones of captured shapes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastkernels.evaluation.capture.layout import laid_out
from fastkernels.evaluation.capture.recipe import decode, dtype_of
from fastkernels.evaluation.capture.record import (
    Argument,
    Capture,
    ItemsFact,
    ObjectFact,
    Phase,
    Routing,
    Sample,
    SiteRecord,
    TensorFact,
)
from fastkernels.evaluation.capture.routing import IDS, ids_like
from fastkernels.evaluation.capture.store import value_of
from fastkernels.tasks.task import Case, Task

# The facts that bound an argument of integers.
BOUNDS: Mapping[str, tuple[str, ...]] = {
    "ids": ("num_embeddings", "vocab_size"),
    "input_ids": ("vocab_size", "num_embeddings"),
    "positions": ("max_position", "max_position_embeddings"),
    IDS: ("num_experts",),
}
STEADY = ("cos", "sin", "mask", "topk_weights")
JITTER = 2.0**-6
FEW = 2  # of integers that nothing bounds


@dataclass(frozen=True)
class CapturedCall:
    """One kind of call, over all sites that make it."""

    facts: Mapping[str, Any]
    arguments: Mapping[str, Argument]
    calls: Counter[Phase]
    samples: tuple[Sample, ...]
    routing: tuple[Routing, ...]


def cases_of(capture: Capture, task: Task, *, limit: int | None = None) -> list[Case]:
    """Cases of ``task`` out of a capture, the most frequent call first.

    A case's ``draw`` gives captured values where the capture has them: another sample for another generator, and floats
    moved by up to 1.6% of themselves, for a bench wants other content at every draw. Tensors without values get random
    ones; ids of experts are then drawn by the captured load. Tensors of the model's dtype
    take the dtype that is asked for, and all have the captured strides. Calls with arguments that no file holds (a
    cache, an engine's attention) make no case.

    Args:
        limit: most cases.
    """
    found = []
    for number, call in enumerate(calls_of(capture, task)):
        shape = next((a.shape for a in call.arguments.values() if isinstance(a, TensorFact)), ())
        phase = call.calls.most_common(1)[0][0]
        name = f"{capture.workload or 'captured'}_{number}_{phase}_{'x'.join(map(str, shape)) or 'scalar'}"
        found.append(Case(name=name, init=call.facts, draw=_Drawn(capture, call), production=True))
        if len(found) == limit:
            break
    return found


def calls_of(capture: Capture, task: Task) -> list[CapturedCall]:
    """The kinds of calls of ``task`` that can be made again, the most frequent first."""
    merged: dict[str, list[tuple[SiteRecord, int]]] = {}
    for site in capture.of(task.name):
        if site.gated or not _decodable(site.facts):
            continue
        for i, variant in enumerate(site.variants):
            if all(map(_repeatable, variant.arguments.values())):
                told = variant.model_dump(mode="json", include={"arguments"})
                merged.setdefault(json.dumps([site.facts, told], sort_keys=True), []).append((site, i))
    calls = []
    for places in merged.values():
        site, at = places[0]
        count: Counter[Phase] = Counter()
        for where, i in places:
            count.update(where.variants[i].calls)
        here = {(where.path, i) for where, i in places}
        paths = {where.path for where, _ in places}
        calls.append(
            CapturedCall(
                facts={name: decode(value) for name, value in site.facts.items()},
                arguments=site.variants[at].arguments,
                calls=count,
                samples=tuple(s for s in capture.samples if s.task == task.name and (s.path, s.variant) in here),
                routing=tuple(r for r in capture.routing if r.path in paths and r.phase in count),
            )
        )
    return sorted(calls, key=lambda call: -call.calls.total())


@dataclass(frozen=True)
class _Drawn:
    """``Case.draw`` of one captured call."""

    capture: Capture
    call: CapturedCall

    def __call__(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        samples, sample = self.call.samples, None
        if samples:
            sample = samples[int(torch.randint(len(samples), (), generator=generator))]
        angles = int(torch.randint(1 << 31, (), generator=generator))

        def make(name: str, argument: Argument) -> Any:
            if isinstance(argument, ItemsFact):
                return tuple(make(f"{name}.{i}", item) for i, item in enumerate(argument.items))
            if not isinstance(argument, TensorFact):
                return argument
            if sample is not None and name in sample.values:
                value = jittered(name, value_of(self.capture, sample.values[name]), generator)
            else:
                value = self._random(name, argument, generator, angles)
            for dim, step in enumerate(argument.stride or ()):
                if step == 0 and value.shape[dim] > 1:  # expanded: drawn or moved, its copies would differ
                    value = value.narrow(dim, 0, 1).expand(value.shape)
            return laid_out(value.to(device, self._dtype(argument, dtype), copy=True), argument.stride)

        return tuple(make(name, argument) for name, argument in self.call.arguments.items())

    def _dtype(self, fact: TensorFact, wanted: torch.dtype) -> torch.dtype:
        own = dtype_of(fact.dtype)
        if not fact.floating or own.itemsize == 1:
            return own
        return wanted if fact.dtype == self.capture.dtype else torch.promote_types(own, wanted)

    def _random(self, name: str, fact: TensorFact, generator: torch.Generator, angles: int) -> torch.Tensor:
        last = name.rpartition(".")[0] or name
        if fact.dtype == "bool":
            return torch.ones(fact.shape, dtype=torch.bool)
        if not fact.floating:
            return self._integers(last, fact, generator)
        if last in ("cos", "sin"):  # of the same angles
            turned = torch.rand(fact.shape, generator=torch.Generator().manual_seed(angles)) * 2 * torch.pi
            return turned.cos() if last == "cos" else turned.sin()
        values = torch.randn(fact.shape, generator=generator)
        return values.softmax(-1) if last == "topk_weights" else values

    def _integers(self, name: str, fact: TensorFact, generator: torch.Generator) -> torch.Tensor:
        high = next((self.call.facts[n] for n in BOUNDS.get(name, ()) if self.call.facts.get(n)), FEW)
        if name != IDS:
            return torch.randint(int(high), fact.shape, generator=generator)
        tokens, top_k = fact.shape
        if self.call.routing:
            pick = int(torch.randint(len(self.call.routing), (), generator=generator))
            return ids_like(self.call.routing[pick], tokens, top_k, generator)
        return torch.rand(tokens, int(high), generator=generator).topk(top_k, dim=-1).indices


def jittered(name: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Floating-point values moved by up to ``JITTER`` of themselves: no two draws of one sample have the same content.
    Integers, tables and weights of experts stay as they are."""
    if not value.is_floating_point() or value.itemsize == 1 or name.partition(".")[0] in STEADY:
        return value
    noise = torch.rand(value.shape, generator=generator) * 2 - 1
    return (value * (1 + JITTER * noise)).to(value.dtype)


def _decodable(facts: Mapping[str, Any]) -> bool:
    try:
        for value in facts.values():
            decode(value)
    except ValueError:
        return False
    return True


def _repeatable(argument: Argument) -> bool:
    if isinstance(argument, ItemsFact):
        return all(map(_repeatable, argument.items))
    return not isinstance(argument, ObjectFact)
