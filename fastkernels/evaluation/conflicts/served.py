"""A piece of a served model around the candidate: two calls with an attention between them, and neighbours that read.

Engines pad: what is compared are the rows of the step; behind them lie another step's, far larger."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.compare import Judge, close, same_bits
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors

MOST = 12  # tensor arguments: engines want them by name
LOUD = 64.0  # times larger than the step's own rows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tensors stand among a case's arguments, and which of them have a row for each of the batch's."""

    spec: Any
    leaves: tuple[Any, ...]  # with None in the place of tensors
    places: tuple[int, ...]
    batched: tuple[bool, ...]

    @classmethod
    def of(cls, subject: Subject, call: Call) -> Layout:
        """The layout of a redrawn call.

        Raises:
            Skip: too many tensors, none with rows, or a number that changes with the rows.
        """
        assert call.rows is not None
        drawn = pytree.tree_leaves(subject.draw(dataclasses.replace(call, rows=call.rows + 1)))
        leaves, spec = pytree.tree_flatten(subject.draw(call))
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        batched = tuple(leaves[i].shape[:1] != drawn[i].shape[:1] for i in places)
        if len(places) > MOST or not any(batched):
            raise Skip(f"{call.case.name}: {len(places)} tensors, {sum(batched)} of them with rows")
        rest = tuple(None if i in places else leaf for i, leaf in enumerate(leaves))
        if any(r != d for i, (r, d) in enumerate(zip(rest, drawn, strict=True)) if i not in places):
            raise Skip(f"{call.case.name}: a number among the arguments changes with the rows")
        return cls(spec=spec, leaves=rest, places=places, batched=batched)

    @property
    def dynamic(self) -> list[str]:
        """Names, in ``Served.forward``, of the tensors with rows."""
        return [f"t{i}" for i, batched in enumerate(self.batched) if batched]

    def arguments(self, given: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """The tensors in their places."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, given, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.spec)


class Served(nn.Module):
    """``forward`` returns: both calls' outputs, what is read of the first's, and of the arguments before and after."""

    def __init__(self, *, inner: nn.Module, layout: Layout, attention: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.layout, self.attention = inner, layout, attention
        self.count, self.mixed = len(layout.places), layout.batched.index(True)

    def forward(
        self,
        t0: torch.Tensor,
        t1: torch.Tensor | None = None,
        t2: torch.Tensor | None = None,
        t3: torch.Tensor | None = None,
        t4: torch.Tensor | None = None,
        t5: torch.Tensor | None = None,
        t6: torch.Tensor | None = None,
        t7: torch.Tensor | None = None,
        t8: torch.Tensor | None = None,
        t9: torch.Tensor | None = None,
        t10: torch.Tensor | None = None,
        t11: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        named = (t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11)
        given = [t.clone() for t in named[: self.count]]  # intermediates, for the compiler to own and reuse
        before = [_read(t) for t in given]
        first = tensors(self.inner(*self.layout.arguments(given)))
        mixed = list(given)
        mixed[self.mixed] = self.attention(given[self.mixed])
        second = tensors(self.inner(*self.layout.arguments(mixed)))
        after = [_read(t) for t in given]
        return [*first, *second, *(_read(t) for t in first), *before, *after]


def _read(t: torch.Tensor) -> torch.Tensor:
    return t.logical_not() if t.dtype == torch.bool else t.neg()


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a call: its rows padded to ``size``, of the values of ``seed``."""

    subject: Subject
    call: Call
    layout: Layout
    size: int
    seed: int = 0

    @property
    def rows(self) -> int:
        assert self.call.rows is not None
        return self.call.rows

    def inputs(self) -> list[torch.Tensor]:
        """The tensors, those with rows padded by rows of another step."""
        own = tensors(self.subject.draw(self.call, seed=self.seed))
        if self.size == self.rows:
            return own
        other = tensors(self.subject.draw(dataclasses.replace(self.call, rows=self.size), seed=self.seed + 31))
        for i, (mine, theirs) in enumerate(zip(own, other, strict=True)):
            if self.layout.batched[i]:
                loud = theirs * LOUD if theirs.is_floating_point() else theirs
                own[i] = torch.cat([mine, loud[self.rows :]])
        return own

    def wrong(self, got: Sequence[torch.Tensor], *, judge: Judge) -> str | None:
        """Why the outputs of Served are not what the task says for the step's rows, or None."""
        got = [t[: self.rows] if t.shape[:1] == (self.size,) else t for t in got]
        given = tensors(self.subject.draw(self.call, seed=self.seed))
        count = (len(got) - 2 * len(given)) // 3
        first, second, consumed = (got[i * count : (i + 1) * count] for i in range(3))
        parts = {"": first, "behind the attention: ": second}
        for label, part in parts.items():
            wrong = judge.wrong(part, seed=self.seed)
            if wrong is not None:
                return label + wrong
        differs = close(consumed, [_read(t) for t in first], self.subject, self.call.dtype)
        if differs is not None:
            return f"a neighbour reads another output than is returned: {differs}"
        expected = [_read(t) for t in given] * 2
        return None if same_bits(got[3 * count :], expected) else "a neighbour reads another argument than was given"


class Buffers:
    """The tensors of every step at the same addresses, as an engine's runner puts them."""

    def __init__(self, largest: Step) -> None:
        self.buffers = [torch.empty_like(t) for t in largest.inputs()]

    def placed(self, step: Step) -> tuple[torch.Tensor, ...]:
        """The step's tensors, those with rows as the first rows of their buffers."""
        pairs = zip(self.buffers, step.inputs(), step.layout.batched, strict=True)
        return tuple((b[: step.size] if batched else b).copy_(value) for b, value, batched in pairs)


def cache_folder(engine: str) -> Path:
    """A new folder where this process has Inductor's cache: the worker removes it afterwards."""
    base = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=base))
