"""Is a call right? Its outputs and its arguments afterwards against the reference's, by the task's accuracy class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.inputs import Drawn
from fastkernels.evaluation.bench.result import Failure
from fastkernels.tasks import Task
from fastkernels.tasks.accuracy import ROUNDING, Error, measure, worst

# Below the least normal float32 (and bfloat16) number flushing to zero is the hardware's right.
DENORMAL = torch.finfo(torch.float32).tiny
NARROWEST_ROW, ROW_FLOORS, ROW_BACKGROUND = 16, 8, 1e-3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found on one call. ``error`` and ``limit`` are those of the output that is furthest out, by ``l2``.

    ``max_abs_error``, ``max_rel_error`` (relative to an element's size plus the output's rms) and ``matched_ratio``
    (share of elements within the limit) are over all outputs.
    """

    failures: list[Failure]
    error: Error
    limit: Error
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    matched_ratio: float = 1.0


@dataclass(frozen=True)
class _Compared:
    name: str
    error: Error
    limit: Error
    row: float
    row_limit: float
    max_abs: float
    matched: float

    @property
    def excess(self) -> float:
        """How far out, in limits; above 1 is wrong."""
        pairs = (
            (self.error.l2, self.limit.l2),
            (self.error.peak, self.limit.peak),
            (self.row, self.row_limit),
        )
        return max((0.0 if e == 0 else math.inf if limit == 0 else e / limit) for e, limit in pairs)


def judge(
    got: Any,
    reference: Any,
    oracle: Any,
    *,
    task: Task,
    dtype: torch.dtype,
    inputs_before: Sequence[Any] | None = None,
    inputs_after: Sequence[Any] | None = None,
    expected_after: Sequence[Any] | None = None,
    slack: Sequence[Error] | None = None,
    where: str = "",
) -> Verdict:
    """Outputs ``got`` against ``reference`` (same dtype) and ``oracle`` (float64), then the arguments.

    Args:
        dtype: of the site; its rounding is the floor of the accuracy class.
        inputs_before, inputs_after: (packed) arguments; those that the task does not name in ``mutates`` must be the
            same bits, the others right as outputs are, against ``expected_after``.
        slack: for each tensor of ``oracle``, how far a rounding may move it (``Drawn.slack``).

    Raises:
        EvaluationError: the reference itself is not finite where the oracle is: such inputs tell nothing.
    """
    failures = _structure(got, reference, where)
    compared: list[_Compared] = []
    if not failures:
        names, outputs = _named(got)
        expected, exact = _named(reference)[1], _named(oracle)[1]
        for i, (name, g, r, o) in enumerate(zip(names, outputs, expected, exact, strict=True)):
            if isinstance(r, torch.Tensor):
                moved = slack[len(compared)] if slack is not None else None
                compared.append(_compare(name, g, r, o, task=task, dtype=dtype, slack=moved, where=where))
            elif g != r:
                failures.append(Failure(code="WRONG_OUTPUT", where=where, detail=f"output {i} is {g!r}, not {r!r}"))
    failures += [_wrong(c, where) for c in compared if c.excess > 1]
    if inputs_before is not None and inputs_after is not None:
        failures += mutated(inputs_before, inputs_after, expected_after, task=task, dtype=dtype, where=where)
    furthest = max(compared, key=lambda c: c.excess, default=None)
    nothing = Error(l2=0.0, peak=0.0)
    return Verdict(
        failures=failures,
        error=furthest.error if furthest else nothing,
        limit=furthest.limit if furthest else nothing,
        max_abs_error=max((c.max_abs for c in compared), default=0.0),
        max_rel_error=max((c.error.peak for c in compared), default=0.0),
        matched_ratio=min((c.matched for c in compared), default=0.0 if failures else 1.0),
    )


def judge_drawn(drawn: Drawn, got: Any, after: Sequence[Any] | None, *, task: Task, dtype: torch.dtype) -> Verdict:
    """``judge`` of a call on ``drawn.arguments`` that returned ``got`` and left ``after`` in the arguments."""
    return judge(
        got,
        drawn.expected,
        drawn.oracle,
        task=task,
        dtype=dtype,
        inputs_before=drawn.arguments,
        inputs_after=after,
        expected_after=drawn.after,
        slack=drawn.slack,
        where=drawn.name,
    )


def mutated(
    before: Sequence[Any],
    after: Sequence[Any],
    expected: Sequence[Any] | None,
    *,
    task: Task,
    dtype: torch.dtype,
    where: str = "",
) -> list[Failure]:
    """Arguments that were changed and may not be, or were not changed as the reference changes them."""
    parameters = list(inspect.signature(task.interface.forward).parameters)[1:]
    failures = []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        name = parameters[i] if i < len(parameters) else f"argument {i}"
        if name not in task.mutates:
            if not same_bits(old, new):
                failures.append(Failure(code="MUTATED_INPUT", where=where, detail=f"{name} was changed by forward"))
        elif expected is not None and not _changed_as(new, expected[i], task=task, dtype=dtype, where=where):
            detail = f"{name} is not changed as the reference changes it"
            failures.append(Failure(code="MUTATED_INPUT", where=where, detail=detail))
    return failures


def same_bits(one: Any, two: Any) -> bool:
    """Whether two nested values have the same tensors: shapes, dtypes and each bit, NaN and -0.0 too.

    >>> nan = torch.tensor([float("nan"), 0.0])
    >>> same_bits([nan], [nan.clone()]), same_bits([nan], [-nan])
    (True, False)
    """
    first, second = pytree.tree_leaves(one), pytree.tree_leaves(two)
    return len(first) == len(second) and all(map(_same_leaf, first, second))


def _same_leaf(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return a is b or bool(a == b)
    if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)


def _changed_as(new: Any, expected: Any, *, task: Task, dtype: torch.dtype, where: str) -> bool:
    if _structure(new, expected, where):
        return False
    own = Error(l2=ROUNDING.get(dtype, 0.0), peak=ROUNDING.get(dtype, 0.0))
    pairs = zip(_named(new)[1], _named(expected)[1], strict=True)
    return all(
        task.accuracy.accepts(measure(g, e), own, dtype) if isinstance(e, torch.Tensor) else g == e for g, e in pairs
    )


def _structure(got: Any, reference: Any, where: str) -> list[Failure]:
    """What is wrong before any value is looked at; tuple or list is one to a caller that unpacks."""
    names, outputs = _named(got)
    wanted_names, wanted = _named(reference)
    if names != wanted_names:
        code = (
            "WRONG_SHAPE" if isinstance(got, (tuple, list)) and isinstance(reference, (tuple, list)) else "WRONG_TYPE"
        )
        return [Failure(code=code, where=where, detail=f"returned {_told(got)}, the reference {_told(reference)}")]
    failures = []
    for name, g, r in zip(names, outputs, wanted, strict=True):
        if isinstance(g, torch.Tensor) != isinstance(r, torch.Tensor):
            failures.append(Failure(code="WRONG_TYPE", where=where, detail=f"{name} is {_told(g)}, not {_told(r)}"))
        elif not isinstance(r, torch.Tensor):
            continue
        elif g.shape != r.shape:
            detail = f"{name} is {tuple(g.shape)}, the reference's {tuple(r.shape)}"
            failures.append(Failure(code="WRONG_SHAPE", where=where, detail=detail))
        elif (g.dtype, g.device.type) != (r.dtype, r.device.type):
            detail = f"{name} is {g.dtype} on {g.device.type}, the reference's {r.dtype} on {r.device.type}"
            failures.append(Failure(code="WRONG_DTYPE", where=where, detail=detail))
    return failures


def _named(value: Any, name: str = "output") -> tuple[list[str], list[Any]]:
    """The leaves of tuples, lists and dicts, each with a name that says where it is."""
    if isinstance(value, dict):
        items = [(f"{name}[{key!r}]", value[key]) for key in sorted(value, key=str)]
    elif isinstance(value, (tuple, list)):
        items = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
    else:
        return [name], [value]
    found = [_named(v, n) for n, v in items]
    return [n for names, _ in found for n in names], [v for _, values in found for v in values]


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} outputs"
    return "None" if value is None else f"a {type(value).__name__}"


@torch.no_grad()
def _compare(
    name: str,
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    *,
    task: Task,
    dtype: torch.dtype,
    slack: Error | None,
    where: str,
) -> _Compared:
    got, reference, oracle = (_flushed(t.detach()) for t in (got, reference, oracle))
    own = measure(reference, oracle)
    if not math.isfinite(own.l2):
        raise EvaluationError(f"{task.name} {where}: the reference is not finite where float64 is; use other inputs.")
    own = worst([own, slack]) if slack is not None else own
    error, limit = measure(got, oracle), task.accuracy.limit(own, dtype)
    if got.numel() == 0 or not math.isfinite(error.l2):
        far = 0.0 if got.numel() == 0 else math.inf
        return _Compared(name, error, limit, far, 0.0, far, 1.0 - bool(far))
    want, have = oracle.double(), got.double()
    difference = (have - want).nan_to_num().abs()
    bound = limit.peak * (want.nan_to_num().abs() + want.nan_to_num().square().mean().sqrt())
    row_limit = task.accuracy.factor * max(_rows(reference, oracle), slack.peak if slack is not None else 0.0)
    return _Compared(
        name=name,
        error=error,
        limit=limit,
        row=_rows(got, oracle),
        row_limit=row_limit + ROW_FLOORS * task.accuracy.floor.get(dtype, ROUNDING[torch.float32]),
        max_abs=float(difference.max()),
        matched=float((difference <= bound).double().mean()),
    )


def _rows(output: torch.Tensor, oracle: torch.Tensor) -> float:
    """The worst row's relative l2: a small row that is wrong does not hide behind large ones. 0 for narrow rows."""
    if not output.is_floating_point() or output.dim() < 2 or output.shape[-1] < NARROWEST_ROW or not output.numel():
        return 0.0
    want = oracle.double().nan_to_num(posinf=0.0, neginf=0.0)
    difference = torch.where(torch.isfinite(oracle), output.double() - want, 0.0)
    background = ROW_BACKGROUND * float(want.square().mean().sqrt()) * want.shape[-1] ** 0.5
    return float((difference.norm(dim=-1) / (want.norm(dim=-1) + background + DENORMAL)).max())


def _flushed(t: torch.Tensor) -> torch.Tensor:
    holds = t.is_floating_point() and t.dtype.itemsize > 1
    return torch.where(t.abs() < DENORMAL, torch.zeros_like(t), t) if holds else t


def _wrong(c: _Compared, where: str) -> Failure:
    row = f", worst row {c.row:.2e} (limit {c.row_limit:.2e})" if c.row > c.row_limit else ""
    detail = f"{c.name}: error {c.error}, limit {c.limit}{row}; {c.matched:.2%} of the elements are within it"
    return Failure(code="WRONG_OUTPUT", where=where, detail=detail)
