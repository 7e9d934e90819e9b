"""A candidate as one operator that compilers do not look into: ``torch.ops.fastkernels.<task>_<hash>``.

Equal candidates with equal constructor facts share an operator; the name is a hash of the content, so that a changed
candidate is another operator and no compile cache can serve the old one's code for it."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.errors import LoweringError
from fastkernels.runtime.candidate import DECLARATION, digest_of
from fastkernels.runtime.fake import Semantics, Slot, slots_of
from fastkernels.runtime.member import Member, takes
from fastkernels.runtime.operator import NAMESPACE, Operator
from fastkernels.runtime.schema import Layout, adapter, layout_of, layouts_by_case, signature_of
from fastkernels.tasks import Task

_lock = threading.RLock()
_shared: dict[str, Operator] = {}


def operators() -> list[Operator]:
    """The operators that are registered now, each with all implementations that share it."""
    with _lock:
        return list(_shared.values())


class Opaque:
    """An implementation bound to its operator; call it as the interface's method.

    Attributes:
        name: qualified name of the operator, ``fastkernels::rms_norm_<hash10>``.
        op: the operator; where results vary with the optional tensors, ``ops`` has one for each layout of results.
        decomposition: ``{operator: function}`` that computes the task's reference: for a decomposition table.
        forward: the plain function behind a call, the one to put where Dynamo will trace it.
    """

    def __init__(self, operator: Operator, implementation: nn.Module, extra: Sequence[Slot]) -> None:
        member = Member(implementation, operator.signature.method, slots_of(implementation))
        with _lock:
            operator.join(member)
        self._operator, self.implementation = operator, implementation
        self._finalizer = weakref.finalize(self, _leave, operator, member)
        self._finalizer.atexit = False
        holders = [(s.owner, s.table, s.leaf) for s in (*member.slots, *extra)]
        self._slots = (*member.slots, *extra)
        self.forward = adapter(operator.signature, operator.layouts, operator.ops, holders, operator.label)

    @property
    def name(self) -> str:
        return f"{NAMESPACE}::{self._operator.name}"

    @property
    def op(self) -> torch._ops.OpOverload:
        return next(iter(self.ops.values()))

    @property
    def ops(self) -> dict[Layout, torch._ops.OpOverload]:
        return self._operator.ops

    @property
    def host_work(self) -> str | None:
        """What a call does on the host, for which the operator stays out of CUDA graphs; None for nothing known."""
        return self._operator.host_work

    @property
    def transparent(self) -> bool:
        """Whether AOTAutograd puts the candidate's own kernels in its place."""
        return self._operator.transparent

    @property
    def layouts(self) -> dict[tuple[bool, ...], Layout]:
        """What is returned for each choice of optional tensors; empty where that is always the same."""
        return self._operator.layouts

    @property
    def decomposition(self) -> dict[torch._ops.OpOverload, Callable[..., Any]]:
        return {op: self._operator.decomposed(layout) for layout, op in self.ops.items()}

    @property
    def copies(self) -> Counter[str]:
        """Results that had to be copied so far, by reason: the candidate did not return what was promised for it."""
        return self._operator.copies

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def check(self, *example: Any) -> None:
        """Runs ``torch.library.opcheck`` on copies of ``example``, and calls twice.

        Raises:
            CandidateError: the operator does not do what its schema and its fake say.
        """
        self._operator.check(example, [s.tensor for s in self._slots])

    def close(self) -> None:
        """Leaves the operator; the last to leave unregisters it. A second call does nothing."""
        self._finalizer()


def make_opaque(
    implementation: nn.Module,
    *,
    task: Task,
    facts: Mapping[str, Any],
    digest: str,
    reference: nn.Module,
    method: str = "forward",
    example: tuple[Any, ...] | None = None,
    like: Opaque | None = None,
    host_work: str | None = None,
    transparent: bool = False,
) -> Opaque:
    """Registers ``implementation`` as an operator, or joins the one of an equal candidate with equal facts.

    Args:
        implementation: the candidate's module with the live tensors bound; they become inputs of the operator.
        task: whose interface gives the schema, and whose ``mutates`` the arguments written to.
        facts: constructor facts; with ``digest``, the candidate's content hash, they make the operator's name.
        reference: the interface built from the same facts; its parameters need no values.
        method: another method of the interface to make an operator of, such as ``rotate``.
        example: a call that shows a choice of optional tensors which the task's cases do not.
        like: the operator of an equal implementation, which knows as much as its example showed.
        host_work: what a call does on the host, if anything: such an operator is tagged to stay out of CUDA graphs.
        transparent: AOTAutograd puts what the candidate does, kernels included, in the place of the operator.

    Raises:
        LoweringError: no operator schema can express the interface.
    """
    label = f"{type(implementation).__module__}.{type(implementation).__qualname__}"
    signature = signature_of(task, method)
    slots = slots_of(implementation)
    held = {s.name for s in slots}
    extra = [s for s in slots_of(reference) if s.name not in held]
    names = [s.name for s in (*slots, *extra)]
    semantics = Semantics(reference, task=task, facts=facts, method=method, names=names)
    layouts: dict[tuple[bool, ...], Layout] = {}
    if like is not None:
        layouts = dict(like.layouts)
    elif signature.layout is None:
        layouts = dict(layouts_by_case(task)) if method == "forward" else {}
        if example is not None and signature.pattern(example) not in layouts:
            made = layout_of(semantics.fake(example, [s.tensor for s in (*slots, *extra)]))
            if made is not None:
                layouts[signature.pattern(example)] = made
        if not layouts:
            raise LoweringError(f"task {task.name}: what {method} returns is not known without an example of a call.")
    declared = type(implementation).__dict__.get(DECLARATION)
    trains = bool(declared and declared[1].training)
    inside = [(path, c.digest) for path, c in implementation.__dict__.get("placed", ())]
    schemas = [signature.schema("", form) for form in dict.fromkeys([signature.layout, *layouts.values()]) if form]
    # The reference's own file too: its backward is traced into compiled graphs, whose caches know the op's name alone.
    sources = (type(implementation).__qualname__, digest, digest_of(task.interface), inside)
    told = (trains, host_work is not None, transparent)
    content = repr((task.name, method, canonical(facts), sources, schemas, sorted(layouts), names, told))
    stem = task.name if method == "forward" else f"{task.name}_{method}"
    name = f"{stem}_{hashlib.sha256(content.encode()).hexdigest()[:10]}"
    with _lock:
        operator = _shared.get(name)
        if operator is None:
            operator = _shared[name] = Operator(
                name=name,
                label=label,
                signature=signature,
                layouts=layouts,
                semantics=semantics,
                trains=trains,
                takes=takes(getattr(implementation, method)),
                host_work=host_work,
                transparent=transparent,
            )
        return Opaque(operator, implementation, extra)


def _leave(operator: Operator, member: Member) -> None:
    with _lock:
        if operator.leave(member):
            _shared.pop(operator.name, None)


def canonical(value: Any) -> Any:
    """Constructor facts in a form whose repr is the same in every process."""
    if isinstance(value, Mapping):
        return sorted((repr(k), canonical(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(canonical(v)) for v in value)
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '')}.{name}" if name is not None else repr(value)
