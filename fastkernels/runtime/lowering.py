"""How a candidate enters the compile stack: traced into the graph (inline), or as one operator in it, which shows its
kernels to the compiler behind Dynamo (transparent) or does not (opaque).

Only what is compiled changes: an eager call runs the candidate's own code either way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from fastkernels.errors import LoweringError
from fastkernels.runtime.candidate import Lowering
from fastkernels.runtime.fake import slots_of
from fastkernels.runtime.host_work import host_work
from fastkernels.runtime.opaque import Opaque, make_opaque
from fastkernels.runtime.schema import Signature, signature_of
from fastkernels.tasks import Task

Forward = Callable[..., Any]
OPERATORS = ("opaque", "transparent")  # ways in which Dynamo sees one operator


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """What stands for an implementation in a compiled graph, and why; ``op`` is to be closed when it goes.

    ``original``, with no ``forward``: neither way can be taken, so a graph holds what the model had before.
    ``composed``: in place of a method of the candidate's own stand its forward, lowered so, and an add.
    ``content`` is equal for equal parts of implementations: their candidate, method and constructor facts.
    """

    forward: Forward | None
    kind: Literal["inline", "opaque", "transparent", "original"]
    reason: str
    op: Opaque | None = None
    composed: bool = False
    content: tuple[str, ...] = ()
    absent: tuple[int, ...] = ()  # arguments that an operator cannot take: calls that give one are not for ``forward``

    def close(self) -> None:
        """Unregisters the operator, if there is one and nobody else uses it."""
        if self.op is not None:
            self.op.close()


def lower(
    implementation: nn.Module,
    *,
    task: Task,
    facts: Mapping[str, Any],
    digest: str,
    reference: nn.Module,
    lowering: Lowering,
    example: tuple[Any, ...] | None,
    method: str = "forward",
    like: Lowered | None = None,
) -> Lowered:
    """Decides how ``implementation`` is compiled: as asked, or for ``auto`` inline where Dynamo can trace it.

    ``transparent`` is an operator for Dynamo, in whose place the compiler behind it takes the candidate's kernels;
    where these may not be shown it is ``opaque``, with the reason.

    Args:
        example: arguments of one call; without them nothing can be tried, and ``auto`` is opaque.
        like: the outcome for an equal implementation, to be taken over without trying again.

    Raises:
        LoweringError: ``inline`` for a candidate that cannot be traced; ``opaque`` for a call with a callable, or for
            an interface with arguments that no operator can take. Where the interface needs a callable, ``opaque``
            means inline, and the candidate must be traceable.
        CandidateError: the operator does not do what its schema and its fake say.
    """
    if lowering not in get_args(Lowering):
        raise LoweringError(f"lowering: {', '.join(map(repr, get_args(Lowering)))}, not {lowering!r}.")
    from fastkernels.runtime.trace import untraceable  # imports Dynamo, which takes a second

    label = f"{type(implementation).__module__}.{type(implementation).__qualname__}"
    forward = getattr(implementation, method)
    reason = "asked for"
    needed = needed_callable(task, method) if lowering in OPERATORS else None
    if needed is not None:
        lowering = "inline"
    if like is not None:
        if like.op is None:
            return replace(like, forward=forward if like.kind == "inline" else None)
        reason, example = like.reason, None
    elif lowering not in OPERATORS:
        if example is not None:
            untraced = untraceable(forward, example, implementation=implementation)
            if untraced is None:
                told = f", and no operator takes its argument {needed}" if needed is not None else ""
                return Lowered(forward=forward, kind="inline", reason=f"Dynamo traces it in one graph{told}")
            if lowering == "inline":
                way = "Use lowering='auto' or 'opaque'."
                if needed is not None:
                    way = f"No operator takes its argument {needed}: make what is around that call traceable."
                raise LoweringError(
                    f"{label}: candidate for {task.name} cannot be traced into a graph: {untraced}. {way}"
                )
            reason = untraced
        elif lowering == "inline":
            return Lowered(forward=forward, kind="inline", reason="asked for, not tried: no example of a call")
        else:
            reason = "no example of a call to trace"
    try:
        signature = signature_of(task, method)
    except LoweringError as error:
        raise LoweringError(
            f"{label}: candidate for {task.name} cannot be made an operator ({reason}): {error} "
            "With lowering='auto' a graph holds this candidate if it can be traced, and the original if not."
        ) from error
    _refuse_callables(signature, example, label, reason)
    if like is not None and like.op is not None:
        seen = like.op.host_work
    else:
        seen = None if example is None else host_work(forward, lambda: fresh(example))
    transparent = like is not None and like.op is not None and like.op.transparent
    if lowering == "transparent" and (like is None or like.op is None):
        why = _why_opaque(forward, example, implementation, signature, seen)
        transparent, reason = why is None, why or "its trace launches Triton kernels"
    op = make_opaque(
        implementation,
        task=task,
        facts=facts,
        digest=digest,
        reference=reference,
        method=method,
        example=example,
        like=None if like is None else like.op,
        host_work=seen,
        transparent=transparent,
    )
    if example is not None:
        try:
            op.check(*example)
        except BaseException:
            op.close()
            raise
    absent = tuple(i for i, a in enumerate(signature.arguments) if a.type is None)
    kind: Literal["opaque", "transparent"] = "transparent" if transparent else "opaque"
    return Lowered(forward=op.forward, kind=kind, reason=reason, op=op, absent=absent)


def _why_opaque(
    forward: Forward,
    example: tuple[Any, ...] | None,
    implementation: nn.Module,
    signature: Signature,
    seen: str | None,
) -> str | None:
    """Why an operator may not show its kernels, or None; ``seen`` is the work of a call on the host."""
    if example is None:
        return "no example of a call"
    if seen is not None:
        return f"it works on the host: {seen}"
    if signature.mutates:
        return "it writes to its arguments"
    from fastkernels.runtime.transparent import hidden  # imports much of the compiler

    return hidden(forward, example, slots=slots_of(implementation))


def needed_callable(task: Task, method: str) -> str | None:
    """An argument that every call of the interface's ``method`` gives and no operator can take; None without one."""
    try:
        arguments = signature_of(task, method).arguments
    except LoweringError:  # no operator at all: said where one is wanted
        return None
    return next((a.name for a in arguments if a.type is None and a.default is inspect.Parameter.empty), None)


def fresh(example: Sequence[Any]) -> list[Any]:
    """The arguments with their tensors copied."""
    return [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in example]


def _refuse_callables(signature: Signature, example: tuple[Any, ...] | None, label: str, reason: str) -> None:
    for argument, value in zip(signature.arguments, example or (), strict=False):
        if argument.type is None and value is not None:
            raise LoweringError(
                f"{label}: argument {argument.name} of task {signature.task} is a callable, which no operator can "
                f"take, and inline will not do ({reason}). Lower the parts of this candidate instead (lower_parts)."
            )
