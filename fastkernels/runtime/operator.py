"""What modules with an equal candidate and equal facts share: registered ops, and the way from an op to a module.

By Library.define and impl, whose dispatch is the cheapest there is in Python; the checks on results cost more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch

from fastkernels.errors import CandidateError, LoweringError
from fastkernels.runtime import backward
from fastkernels.runtime.fake import Semantics, holding, undispatched
from fastkernels.runtime.launch import launching_in_graph
from fastkernels.runtime.member import Member
from fastkernels.runtime.results import apart, described, described_layout, names, share
from fastkernels.runtime.schema import Layout, Signature, count, layout_of, tensors_in

NAMESPACE = "fastkernels"
_dtype = attrgetter("dtype")
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

# What to do about each of the checks of torch.library.opcheck.
MENDS = {
    "test_schema": "Write to new tensors only, keep workspaces out of the buffers, or mutate what the task mutates.",
    "test_autograd_registration": "This is a defect of fastkernels' own registration.",
    "test_faketensor": "Return the shapes and dtypes that the task's reference returns for these arguments.",
    "test_aot_dispatch_dynamic": "Compute the result from the arguments and parameters alone, the same at each call.",
}


class Operator:
    """What modules with equal candidates and facts share: the registered ops, and how to run them."""

    def __init__(
        self,
        *,
        name: str,
        label: str,
        signature: Signature,
        layouts: dict[tuple[bool, ...], Layout],
        semantics: Semantics,
        trains: bool,
        takes: int,
        host_work: str | None = None,
        transparent: bool = False,
    ) -> None:
        self.name, self.label, self.signature, self.layouts = name, label, signature, layouts
        self.semantics, self.trains, self.takes = semantics, trains, takes
        self.host_work, self.transparent = host_work, transparent
        self.tags = TAGS if host_work is None else (*TAGS, torch.Tag.cudagraph_unsafe)
        self.members: list[Member] = []
        self.by_first: dict[int, list[Member]] = {}
        self.copies: Counter[str] = Counter()
        self.ops: dict[Layout, torch._ops.OpOverload] = {}
        self._dtypes: dict[Any, tuple[torch.dtype, ...] | None] = {}
        arguments = signature.arguments
        self._absent = [(i, a.default) for i, a in enumerate(arguments) if a.type is None]
        self._tuples = [i for i, a in enumerate(signature.entering) if a.sequence]
        self._defaults = [a.default for a in arguments]
        self._library = torch.library.Library(NAMESPACE, "FRAGMENT")
        try:
            for layout in dict.fromkeys([signature.layout] if signature.layout is not None else layouts.values()):
                self._register(layout)
        except BaseException:
            self._library._destroy()
            raise

    # -- membership ----------------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        self.members.append(member)
        if member.slots:
            self.by_first.setdefault(id(member.slots[0].tensor), []).append(member)

    def leave(self, member: Member) -> bool:
        """True if that was the last member, and the ops are gone."""
        self.members.remove(member)
        for key, members in list(self.by_first.items()):
            if member in members:  # another list, for an op may be looking through this one
                self.by_first[key] = [m for m in members if m is not member]
                if not self.by_first[key]:
                    del self.by_first[key]
        if not self.members:
            self._library._destroy()
        return not self.members

    # -- registration --------------------------------------------------------------------------------------------

    def _register(self, layout: Layout) -> None:
        name = self.name if not self.ops else f"{self.name}_{count(layout)}"
        schema = self.signature.schema(name, layout)
        library = self._library
        library.define(schema, tags=self.tags)
        body = self._body(layout)
        library.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._fake(layout), lib=library)
        if self.transparent:
            from torch._subclasses.functional_tensor import FunctionalTensorMode  # imports the compiler's parts

            torch.library.register_torch_dispatch(
                f"{NAMESPACE}::{name}", FunctionalTensorMode, self._shown, lib=library
            )
        op = getattr(getattr(torch.ops, NAMESPACE), name).default
        if self.signature.mutates:
            backward.refuse(library, name, op, body, f"{self.label} writes to its arguments and has no backward.")
        elif self.trains:
            arguments = schema.removeprefix(f"{name}(").rpartition(") -> ")[0]
            backward.register_opaque(library, name, arguments, op, body, self._run)
        else:
            backward.register(library, name, op, body, lambda call, state: self.semantics(self._call(call), state))
        self.ops[layout] = op

    def _call(self, call: Sequence[Any]) -> list[Any]:
        """Arguments of the interface's method from those of the op."""
        whole = list(call)
        for i in self._tuples:
            whole[i] = None if whole[i] is None else tuple(whole[i])
        for i, default in self._absent:
            whole.insert(i, default)
        return whole

    def _run(self, call: Sequence[Any], state: Sequence[torch.Tensor]) -> Any:
        """The candidate on ``call`` with ``state``: as it stands where these tensors are its own."""
        whole = self._call(call) if self._absent or self._tuples else list(call)
        while len(whole) > self.takes and whole[-1] is self._defaults[len(whole) - 1]:
            whole.pop()
        for member in self.by_first.get(id(state[0]), ()) if state else self.members:
            if member.owns(state):
                return member.run(*whole)
        member = self.members[0]
        with holding(member.slots, state[: len(member.slots)]):
            return member.run(*whole)

    def _body(self, layout: Layout) -> Callable[..., Any]:
        signature = self.signature
        plain = all(a.tensor for a in signature.entering)
        straight = not self._absent and not self._tuples and self.takes >= len(signature.arguments)
        single = layout == "tensor"
        types = (torch.Tensor,) * count(layout) if layout != (True,) else ()  # a tuple of one goes as a tensor
        known, run, by_first, members = self._dtypes, self._run, self.by_first, self.members
        autocasting = torch._C._is_any_autocast_enabled

        def body(*arguments: Any) -> Any:  # the hot path of a compiled graph: the candidate's cost and little more
            *call, state = arguments
            if autocasting():
                with undispatched():
                    result = run(call, state)
            elif straight:
                for member in by_first.get(id(state[0]), ()) if state else members:
                    if member.owns(state):
                        result = member.run(*call)
                        break
                else:
                    result = run(call, state)
            else:
                result = run(call, state)
            given = [t for t in (call if plain else _flat(call)) if t is not None]
            given += state
            key = (layout, *map(_dtype, given))
            results = (result,) if single else result
            if (
                results.__class__ is tuple
                and (*map(type, results),) == types
                and known.get(key) == (*map(_dtype, results),)
                and apart(results, given)
            ):
                return result
            return self._kept(result, call, state, key, layout)

        return body

    def _own(self, tensor: torch.Tensor, given: list[torch.Tensor]) -> torch.Tensor:
        """``tensor`` as the fake promises it: contiguous, and in memory of its own."""
        for t in given:
            if share(tensor, t):
                self.copies["a result shares memory with an argument or another result"] += 1
                return tensor.clone(memory_format=torch.contiguous_format)
        if not tensor.is_contiguous():
            self.copies["a result is not contiguous"] += 1
            return tensor.contiguous()
        return tensor

    def _kept(
        self,
        result: Any,
        call: Sequence[Any],
        state: list[torch.Tensor],
        key: tuple[Any, ...],
        layout: Layout,
    ) -> Any:
        """The results as the op returns them, each its own; of the reference's structure and dtypes, or an error."""
        if layout_of(result) != layout:
            raise CandidateError(
                f"{self.label} returns {described(result)}, the task {self.signature.task} says "
                f"{described_layout(layout)}. Return what the interface does."
            )
        tensors, dtypes = tensors_in(result), self._dtypes.get(key)
        if dtypes is None:
            dtypes = self._dtypes[key] = self._expected(call, state)
        given, kept = [*_flat(call), *state], list[torch.Tensor]()
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            if tensor.dtype is not dtype:
                raise CandidateError(
                    f"{self.label} returns {names(t.dtype for t in tensors)}, the task {self.signature.task} says "
                    f"{names(dtypes)}. Cast in the candidate, or declare what it supports (dtypes=...)."
                )
            kept.append(self._own(tensor, given + kept))
        return kept[0] if len(kept) == 1 else tuple(kept) if kept else None

    def _expected(self, call: Sequence[Any], state: list[torch.Tensor]) -> tuple[torch.dtype, ...]:
        return tuple(t.dtype for t in tensors_in(self.semantics.fake(self._call(call), state)))

    def _fake(self, layout: Layout) -> Callable[..., Any]:
        def fake(*arguments: Any) -> Any:
            *call, state = arguments
            with undispatched():
                result = tensors_in(self.semantics(self._call(call), state))
            new = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in result)
            return new[0] if len(new) == 1 else new if new else None

        return fake

    def decomposed(self, layout: Layout) -> Callable[..., Any]:
        """The reference with the op's own arguments and results."""
        return _as_op(lambda call, state: self.semantics(self._call(call), state))

    def _shown(self, mode: Any, op: Any, types: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        """The candidate itself, where AOTAutograd asks for the op: its kernels become nodes of the graph."""
        if named:  # nothing of ours calls it so
            return mode.__torch_dispatch__(op, types, arguments, named)
        with mode, torch.no_grad(), launching_in_graph():
            return _as_op(self._run)(*arguments)

    # -- checking ------------------------------------------------------------------------------------------------

    def check(self, example: tuple[Any, ...], state: list[torch.Tensor]) -> None:
        call = [a for a, declared in zip(example, self.signature.arguments, strict=False) if declared.type is not None]
        given = {a.name for a, _ in zip(self.signature.arguments, example, strict=False)}
        call += [a.default for a in self.signature.entering if a.name not in given]
        layout = self.signature.layout or self.layouts.get(self.signature.pattern(example))
        if layout is None:
            raise LoweringError(f"{self.label}: no case of task {self.signature.task} shows a call like this example.")
        op = self.ops[layout]

        def copies() -> list[Any]:
            return [*map(_copy, call), [t.detach().clone() for t in state]]

        with torch.no_grad():
            first = copies()
            one, two = tensors_in(op(*first)), tensors_in(op(*first))
        if any(share(a, b) for a in one for b in two):
            raise CandidateError(
                f"{self.label} returns the same memory from two calls, so that the second overwrites the first result. "
                "Return a new tensor from each call."
            )
        found = torch.library.opcheck(op, tuple(copies()), raise_exception=False)
        for utility, verdict in found.items():
            if verdict != "SUCCESS":
                raise CandidateError(
                    f"{self.label}: opcheck {utility} fails on {op}: {type(verdict).__name__}: {verdict}\n"
                    f"{MENDS.get(utility, '')}"
                ) from (verdict if isinstance(verdict, BaseException) else None)


def _as_op(compute: Callable[[Sequence[Any], Sequence[torch.Tensor]], Any]) -> Callable[..., Any]:
    """``compute(call, state)`` with an op's own arguments and results, for a tracer."""

    def traced(*arguments: Any) -> Any:
        *call, state = arguments
        with undispatched():
            result = tensors_in(compute(call, state))
        given = [a for a in (*call, *state) if isinstance(a, torch.Tensor)]
        new = tuple(t.clone() if any(t is g for g in given) else t.contiguous() for t in result)
        return new[0] if len(new) == 1 else new if new else None

    return traced


def _flat(call: Sequence[Any]) -> list[torch.Tensor]:
    return [t for a in call for t in (a if isinstance(a, list) else (a,)) if isinstance(t, torch.Tensor)]


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value
