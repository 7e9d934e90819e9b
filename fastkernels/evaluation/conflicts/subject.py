"""One candidate inside a stage's process: its task, its calls in every bucket, and the reference to compare with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.runtime.candidate import Candidate
from fastkernels.tasks import Task
from fastkernels.tasks.task import Case
from fastkernels.tasks.tensors import leading, tensors

BUCKETS = (1, 2, 7, 8, 16, 17, 64)
REPRESENTATIVES = 3  # cases that differ in kind of arguments and are run in every bucket
Rebuild = Callable[[nn.Module, Case], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a case: ``rows`` None for the case's own shapes, else redrawn to that leading size."""

    case: Case
    rows: int | None
    dtype: torch.dtype

    def __str__(self) -> str:
        rows = "" if self.rows is None else f" rows={self.rows}"
        return f"{self.case.name}{rows} {str(self.dtype).removeprefix('torch.')}"


@dataclass(kw_only=True)
class Subject:
    """A candidate and everything a stage needs to call it."""

    candidate: Candidate
    device: torch.device
    buckets: Sequence[int] = BUCKETS
    rebuild: Rebuild | None = None  # puts the candidate behind an opaque operator, for the run after the mend
    namespaces: frozenset[str] = frozenset()  # operator namespaces from before the candidate was imported
    _rebatchable: dict[int, bool] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        return self.candidate.task

    @cached_property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes to test: the declared ones without those that the candidate refuses outright, by raising.

        Where it raises in every dtype none is left out: that is a failure, not a refusal.
        """
        taken = tuple(d for d in self.declared if self._takes(d))
        return taken or self.declared

    def _takes(self, dtype: torch.dtype) -> bool:
        call = Call(case=self.cases[0], rows=None, dtype=dtype)
        try:
            with torch.no_grad():
                self.build(call)(*self.draw(call))
        except Exception:  # noqa: BLE001 - a candidate may raise anything; the eager stage reports it
            return False
        return True

    @cached_property
    def declared(self) -> tuple[torch.dtype, ...]:
        """Float32 and bfloat16, as far as the candidate says that it supports them."""
        declared = self.candidate.supports.dtypes
        wanted = (torch.float32, torch.bfloat16)
        return tuple(d for d in wanted if declared is None or d in declared) or tuple((declared or wanted)[:1])

    @cached_property
    def cases(self) -> list[Case]:
        """The small cases that the candidate says it takes and that have rows."""
        return [c for c in self.task.cases() if not c.production and self.refusal(c) is None]

    def refusal(self, case: Case) -> str | None:
        """Why ``case`` is not for this candidate, or None."""
        cls, interface, supports = self.candidate.cls, self.task.interface, self.candidate.supports
        try:
            inspect.signature(cls).bind(**case.init)
        except TypeError as error:
            return f"constructor: {error}"
        facts = inspect.signature(interface).bind(**case.init)
        facts.apply_defaults()
        reason = supports.refusal(device=self.device, dtype=self.declared[0], facts=dict(facts.arguments))
        if reason is not None:
            return reason
        arguments = self.draw(Call(case=case, rows=None, dtype=self.declared[0]))
        try:
            inspect.signature(cls.forward).bind(None, *arguments)
        except TypeError as error:
            return f"forward: {error}"
        sizes = [t.numel() for t in tensors(arguments)]
        if sizes and min(sizes) == 0:
            return "no rows"
        try:
            cls(**case.init)
        except (ValueError, NotImplementedError, AssertionError) as error:
            return f"constructor: {error}"
        return None

    @cached_property
    def representatives(self) -> list[Case]:
        """The first case of each kind of arguments (None, rank, dtype) that can be redrawn to other sizes."""
        kinds: dict[Any, Case] = {}
        fixed: list[Case] = []
        for case in self.cases:
            arguments = self.draw(Call(case=case, rows=None, dtype=self.declared[0]))
            kind = tuple((a.dim(), a.dtype) if isinstance(a, torch.Tensor) else type(a) for a in arguments)
            if kind in kinds:
                continue
            if self.rebatchable(case):
                kinds[kind] = case
            else:
                fixed.append(case)
        return (list(kinds.values()) or fixed)[:REPRESENTATIVES]

    def calls(self, *, rows: Sequence[int] | None = None, cases: int | None = None) -> Iterator[Call]:
        """Representative cases x buckets x dtypes; a case that cannot be redrawn appears with its own shapes."""
        for case in self.representatives[:cases]:
            for dtype in self.dtypes:
                if not self.rebatchable(case):
                    yield Call(case=case, rows=None, dtype=dtype)
                    continue
                for n in self.buckets if rows is None else rows:
                    yield Call(case=case, rows=n, dtype=dtype)

    def build(self, call: Call) -> nn.Module:
        """A fresh candidate for the call, with the same parameter values as ``reference``."""
        module = self.task.build(
            call.case, implementation=self.candidate.cls, seed=3, device=self.device, dtype=call.dtype
        )
        return module if self.rebuild is None else self.rebuild(module, call.case)

    def reference(self, call: Call) -> nn.Module:
        """The task's reference for the call."""
        return self.task.build(call.case, seed=3, device=self.device, dtype=call.dtype)

    def oracle(self, call: Call) -> nn.Module:
        """The reference in a wider dtype, over the same (already rounded) parameter values."""
        return self.reference(call).to(wide(call.dtype))

    def draw(self, call: Call, *, seed: int = 0) -> tuple[Any, ...]:
        """Fresh arguments; the same call and seed give the same values."""
        natural = self._draw(call, seed=seed)
        if call.rows is None:
            return natural
        size = leading(natural)
        if size in (None, 0, call.rows):
            return natural
        more = [self._draw(call, seed=seed + 101 * i) for i in range(1, math.ceil(call.rows / size))]
        return _stacked([natural, *more], size=size, rows=call.rows)

    def _draw(self, call: Call, *, seed: int) -> tuple[Any, ...]:
        return call.case.draw(torch.Generator().manual_seed(seed), self.device, call.dtype)

    def rebatchable(self, case: Case) -> bool:
        """Whether other leading sizes mean the same rows computed alone: the reference itself must say so."""
        key = (case.name, id(case.draw), self.dtypes[0])
        if key not in self._rebatchable:
            self._rebatchable[key] = self._tries_rebatching(case)
        return self._rebatchable[key]

    def _tries_rebatching(self, case: Case) -> bool:
        natural = Call(case=case, rows=None, dtype=self.dtypes[0])
        size = leading(self.draw(natural))
        if not size:
            return False
        rows = 2 * size + 1
        reference = self.reference(natural)
        try:
            with torch.no_grad():
                few = tensors(reference(*self.draw(natural)))
                many = tensors(reference(*self.draw(Call(case=case, rows=rows, dtype=natural.dtype))))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        if len(few) != len(many) or not few:
            return False
        return all(
            f.shape[:1] == (size,)
            and m.shape[:1] == (rows,)
            and torch.allclose(f.double(), m[:size].double(), rtol=1e-2, atol=1e-3)
            for f, m in zip(few, many, strict=True)
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The oracle's dtype: float64 for float32, float32 for halves."""
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


def widen(arguments: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``, the rest as it is."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, arguments)


def _stacked(draws: list[tuple[Any, ...]], *, size: int, rows: int) -> tuple[Any, ...]:
    leaves, spec = pytree.tree_flatten(draws[0])
    others = [pytree.tree_leaves(d) for d in draws[1:]]

    def one(i: int, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 or leaf.shape[0] != size:
            return leaf
        whole = torch.cat([leaf, *(o[i] for o in others)])
        return whole[:rows].clone()

    return pytree.tree_unflatten([one(i, leaf) for i, leaf in enumerate(leaves)], spec)
