"""Is an output right? Against the oracle by the task's accuracy class, and bit by bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors, wide, widen
from fastkernels.tasks.accuracy import measure


class Judge:
    """Holds a call's oracle and reference, and judges outputs for any seed of its arguments."""

    def __init__(self, subject: Subject, call: Call) -> None:
        self.subject, self.call = subject, call
        self.oracle, self.reference = subject.oracle(call), subject.reference(call)

    def expected(self, *, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The reference's outputs and the oracle's."""
        arguments = self.subject.draw(self.call, seed=seed)
        with torch.no_grad():
            precise = tensors(self.oracle(*widen(pytree.tree_map(_copy, arguments), wide(self.call.dtype))))
            plain = tensors(self.reference(*arguments))
        return plain, precise

    def wrong(self, got: Any, *, seed: int = 0, dtypes: bool = False) -> str | None:
        """Why ``got`` is not the task's result, or None; ``dtypes`` asks for the reference's dtypes as well."""
        plain, precise = self.expected(seed=seed)
        mine = tensors(got)
        if len(mine) != len(plain):
            return f"{len(mine)} tensors returned, the task returns {len(plain)}"
        for i, (g, w, o) in enumerate(zip(mine, plain, precise, strict=True)):
            if g.shape != w.shape:
                return f"output {i} has shape {tuple(g.shape)}, the task says {tuple(w.shape)}"
            error, base = measure(g, o), measure(w, o)
            if not self.subject.task.accuracy.accepts(error, base, self.call.dtype):
                return f"output {i} is off by {error}; limit {self.subject.task.accuracy.limit(base, self.call.dtype)}"
            if dtypes and g.dtype != w.dtype:
                return f"output {i} is {g.dtype}, the task says {w.dtype}"
        return None

    def wrong_dtype(self, got: Any) -> str | None:
        """Which output has another dtype than the reference's, or None."""
        for i, (g, w) in enumerate(zip(tensors(got), self.expected()[0], strict=False)):
            if g.dtype != w.dtype:
                return f"output {i} is {g.dtype}, the task says {w.dtype}".replace("torch.", "")
        return None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def close(got: Any, want: Any, subject: Subject, dtype: torch.dtype) -> str | None:
    """Where two runs of the same arithmetic differ by more than a compiler may change, or None."""
    mine, theirs = tensors(got), tensors(want)
    if len(mine) != len(theirs):
        return f"{len(mine)} tensors instead of {len(theirs)}"
    for i, (g, w) in enumerate(zip(mine, theirs, strict=True)):
        if g.shape != w.shape:
            return f"tensor {i} has shape {tuple(g.shape)} instead of {tuple(w.shape)}"
        if g.dtype != w.dtype:
            return f"tensor {i} is {g.dtype} instead of {w.dtype}".replace("torch.", "")
        error = measure(g, w)
        rounding = 4e-6 if dtype in (torch.float32, torch.float64) else 2**-7
        if error.l2 > 8 * rounding or error.peak > 32 * rounding:
            return f"tensor {i} differs by {error}"
    return None


def same_bits(a: Any, b: Any) -> bool:
    """Whether two results are equal bit by bit (NaN equals NaN)."""
    left, right = tensors(a), tensors(b)
    return len(left) == len(right) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(left, right, strict=True)
    )


def copied(value: Any) -> Any:
    """The nested value with every tensor cloned."""
    return pytree.tree_map(_copy, value)


def warm(module: nn.Module, arguments: Any) -> Any:
    """Calls without gradients; a clone of the result."""
    with torch.no_grad():
        return copied(module(*arguments))
