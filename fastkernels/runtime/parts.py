"""Lowers an implementation with the candidates inside it, each on its own, so that one cannot spoil the others."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from fastkernels.errors import CandidateError, LoweringError
from fastkernels.runtime.candidate import Candidate, Lowering
from fastkernels.runtime.fake import reference_for, slots_of
from fastkernels.runtime.lowering import OPERATORS, Forward, Lowered, fresh, lower
from fastkernels.runtime.opaque import canonical
from fastkernels.tasks import Task

ENTRIES = ("forward", "rotate", "accumulate")  # methods by which one implementation calls another
NOT_CALLED = "the example does not call it"


def lower_all(
    implementation: nn.Module,
    *,
    candidate: Candidate,
    facts: Mapping[str, Any],
    placed: Iterable[tuple[str, Candidate]],
    lowering: Lowering,
    example: tuple[Any, ...] | None,
    facts_of: Callable[[nn.Module, Task], Mapping[str, Any]],
    like: Mapping[str, Lowered] | None = None,
    tried: dict[Any, Lowered] | None = None,
) -> dict[str, Lowered]:
    """Lowers the candidates inside ``implementation``, then the implementation itself, under the key ``""``.

    A task's reference that only holds candidates is traced as it is. Under ``auto``, where neither way can be taken,
    the outcome is ``original`` with the reason. Arguments as for ``lower`` and ``lower_parts``.
    """
    if like is not None and like[""].kind == "original":
        return dict(like)
    parts: dict[str, Lowered] = {}
    try:
        parts = lower_parts(
            implementation, placed=placed, lowering=lowering, example=example, facts_of=facts_of, like=like, tried=tried
        )
        if candidate.cls is candidate.task.interface:
            outer = Lowered(forward=implementation.forward, kind="inline", reason="it is the task's reference")
        else:
            device = next((t.device for t in (*implementation.parameters(), *implementation.buffers())), "cpu")
            outer = lower(
                implementation,
                task=candidate.task,
                facts=facts,
                digest=candidate.digest,
                reference=reference_for(candidate.task, facts, device=device),
                lowering=_asked(candidate, lowering),
                example=example,
                like=None if like is None else like[""],
            )
    except (LoweringError, CandidateError) as error:
        for lowered in parts.values():
            lowered.close()
        if lowering != "auto":
            raise
        return {"": Lowered(forward=None, kind="original", reason=str(error))}
    return {**parts, "": outer}


def lower_parts(
    implementation: nn.Module,
    *,
    placed: Iterable[tuple[str, Candidate]],
    lowering: Lowering,
    example: tuple[Any, ...] | None,
    facts_of: Callable[[nn.Module, Task], Mapping[str, Any]],
    like: Mapping[str, Lowered] | None = None,
    tried: dict[Any, Lowered] | None = None,
) -> dict[str, Lowered]:
    """Lowers each candidate inside ``implementation`` on its own, innermost first; the rest stays as it is.

    A part that becomes opaque gets instance methods that call its operator in a graph and its own code outside.
    ``placed`` are paths of submodules with their candidates, ``facts_of(part, task)`` a part's constructor facts.
    Parts and methods that ``example`` does not call stay inline. The result is by path, or path and method; ``like``
    is that of an equal implementation, or of one with fewer layers, to be taken over without trying again; ``tried``
    the outcomes for parts, which is added to, and whose operators stay with whoever keeps it open.
    """
    places = sorted(placed, key=lambda place: place[0].count("."), reverse=True)
    paths = [path for path, _ in places]
    calls = _calls(implementation, paths, example) if example is not None and paths and like is None else {}
    done: dict[str, Lowered] = {}
    tried = {} if tried is None else tried
    try:
        for path, candidate in places:
            part = implementation.get_submodule(path)
            for method in (m for m in ENTRIES if hasattr(part, m)):
                key = path if method == "forward" else f"{path}.{method}"
                facts = facts_of(part, candidate.task)
                content = (candidate.label, candidate.digest, method, repr(canonical(facts)))
                call, known = calls.get((path, method)), None if like is None else _equal(like, key, content)
                if known is None and call is None and (example is not None or method != "forward"):
                    plain = getattr(part, method)
                    done[key] = Lowered(forward=plain, kind="inline", reason=NOT_CALLED, content=content)
                    continue
                shown = (*content, *_kinds(part, call))
                asked = _asked(candidate, lowering)
                lowered = _lower_part(part, candidate, method, asked, call, facts, known or tried.get(shown))
                done[key] = replace(lowered, content=content)
                tried.setdefault(shown, done[key])
    except BaseException:
        for made in done.values():
            made.close()
        raise
    return done


def _asked(candidate: Candidate, lowering: Lowering) -> Lowering:
    """What the candidate declares decides where it was left open, and whether compilers may look into it."""
    if lowering == "auto":
        return candidate.lowering or lowering
    return "opaque" if lowering == "transparent" and candidate.lowering == "opaque" else lowering


def _equal(like: Mapping[str, Lowered], key: str, content: tuple[str, ...]) -> Lowered | None:
    """The outcome in ``like`` for ``key``, or for an equal part elsewhere in it; None where it has no such part.

    A model is tried with fewer layers than it has, fewer rows and a shorter window: numbers among facts may differ.
    """
    here = like.get(key)
    if here is not None and here.content == content:
        return here
    image, facts = _numberless(key), _numberless(content[3])
    ranked = [
        (lowered.content == content, other == key, _numberless(other) == image, lowered.reason != NOT_CALLED, other)
        for other, lowered in like.items()
        if lowered.content[:3] == content[:3] and (other == key or _numberless(lowered.content[3]) == facts)
    ]
    return like[max(ranked)[-1]] if ranked else None


def _numberless(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _lower_part(
    part: nn.Module,
    candidate: Candidate,
    method: str,
    lowering: Lowering,
    call: tuple[Any, ...] | None,
    facts: Mapping[str, Any],
    like: Lowered | None,
) -> Lowered:
    task, plain = candidate.task, getattr(part, method)
    if like is not None and like.kind == "inline" and not like.composed:
        return replace(like, forward=plain)
    device = next((t.device for t in (*part.parameters(), *part.buffers())), torch.device("cpu"))
    reference = reference_for(task, facts, device=device)
    own = not hasattr(task.interface, method)  # nothing says what an operator of it would return
    if own and like is None and lowering not in OPERATORS:
        from fastkernels.runtime.trace import untraceable  # imports Dynamo, which takes a second

        untraced = untraceable(plain, call or (), implementation=part)
        if untraced is None:
            return Lowered(forward=plain, kind="inline", reason="Dynamo traces it in one graph")
    lowered = lower(
        part,
        task=task,
        facts=facts,
        digest=candidate.digest,
        reference=reference,
        lowering=lowering,
        example=call[:1] if own and call is not None else call,
        method="forward" if own else method,
        like=like,
    )
    assert lowered.forward is not None
    if own:
        composed = _added(lowered.forward)
        part.__dict__[method] = _by_mode(plain, composed)
        reason = lowered.reason if like is not None else f"its forward and an add; {lowered.reason}"
        return replace(lowered, forward=composed, reason=reason, composed=True)
    if lowered.kind in OPERATORS:
        part.__dict__[method] = _by_mode(plain, lowered.forward)
        if lowered.absent:
            names = [list(inspect.signature(plain).parameters)[i] for i in lowered.absent]
            instead = getattr(_over(reference, part), method)
            part.__dict__[method] = _by_mode(plain, _unless_given(lowered.absent, names, instead, lowered.forward))
            reason = f"{lowered.reason}; a call that gives {' or '.join(names)} is traced as the task's reference"
            return replace(lowered, reason=lowered.reason if like is not None else reason)
    return lowered


def _kinds(part: nn.Module, call: tuple[Any, ...] | None) -> Iterator[Any]:
    """What of a part's call and insides may decide how it is lowered."""
    yield from (f"{a.dtype} {a.device} {a.dim()}" if isinstance(a, torch.Tensor) else type(a) for a in call or ())
    yield from (type(m) for m in part.modules())


def _added(forward: Forward) -> Forward:
    def composed(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + forward(x)

    return composed


def _by_mode(plain: Forward, compiled: Forward) -> Forward:
    """``compiled`` while a compiler looks, ``plain`` otherwise."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return compiled(*args, **kwargs)
        return plain(*args, **kwargs)

    return forward


def _over(reference: nn.Module, part: nn.Module) -> nn.Module:
    """``reference`` with the parameters and buffers of ``part``, which has the same by name."""
    tensors = {slot.name: slot.tensor for slot in slots_of(part)}
    for slot in slots_of(reference):
        if slot.name in tensors:
            getattr(slot.owner, slot.table)[slot.leaf] = tensors[slot.name]
    return reference


def _unless_given(absent: tuple[int, ...], names: list[str], instead: Forward, forward: Forward) -> Forward:
    """``forward``, or ``instead`` for calls with one of the arguments that no operator can take."""

    def chosen(*args: Any, **kwargs: Any) -> Any:
        given = [args[i] for i in absent if i < len(args)] + [kwargs.get(name) for name in names]
        if any(value is not None for value in given):
            return instead(*args, **kwargs)
        return forward(*args, **kwargs)

    return chosen


def _calls(
    implementation: nn.Module, paths: Iterable[str], example: tuple[Any, ...]
) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The first call of each entry point of each part while ``implementation`` runs on ``example``."""
    calls: dict[tuple[str, str], tuple[Any, ...]] = {}
    undo: list[tuple[dict[str, Any], str, bool, Any]] = []

    def recording(method: Forward, key: tuple[str, str]) -> Forward:
        signature = inspect.signature(method)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if key not in calls:
                bound = signature.bind(*args, **kwargs)
                calls[key] = tuple(fresh(bound.args))
            return method(*args, **kwargs)

        return recorded

    try:
        for path in paths:
            part = implementation.get_submodule(path)
            for method in (m for m in ENTRIES if hasattr(part, m)):
                slots = part.__dict__
                undo.append((slots, method, method in slots, slots.get(method)))
                slots[method] = recording(getattr(part, method), (path, method))
        with torch.no_grad():
            implementation.forward(*fresh(example))
    finally:
        for slots, method, present, former in reversed(undo):
            if present:
                slots[method] = former
            else:
                del slots[method]
    return calls
