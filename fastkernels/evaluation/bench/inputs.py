"""The inputs that a candidate is judged on, each with what the reference says of it; drawn and kept by the parent."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.bench.conditioning import TIE, chooses, moved, tied
from fastkernels.evaluation.bench.families import (
    HIDDEN_SIZES,
    LARGE,
    LARGE_PRODUCTS,
    resized,
    sequences,
    structured,
)
from fastkernels.evaluation.bench.packed import pack, unpack, unpackable
from fastkernels.tasks import Task
from fastkernels.tasks.accuracy import ROUNDING, Error, measure, worst
from fastkernels.tasks.registry import all_tasks
from fastkernels.tasks.task import Case
from fastkernels.tasks.tensors import leading, tensors

Family = Literal["random", "structured", "hidden"]
RANDOM_DRAWS, REDRAWS, HIDDEN_REDRAWS = 5, 24, 4
PROBES, FEW_ELEMENTS = 3, 100_000  # how often inputs are moved; once is enough where there are many
# Roundings that the answer may move by, in norm and at its worst element, on inputs that no case asked for.
ILL_L2, ILL_PEAK = 8.0, 32.0
REFUSES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # how a reference says no to an input
DEVICE_FAILS = (torch.OutOfMemoryError, torch.AcceleratorError)  # RuntimeErrors too, and no word about the input


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Arguments of one call and what the reference makes of them. Only ``arguments`` may leave the parent.

    Args:
        arguments: packed (``packed.pack``); on the bench's device, in its dtype.
        expected: what the reference returns in the bench's dtype.
        after: its arguments after that call.
        oracle: what it returns in float64.
        slack: of each tensor in ``oracle``, how far it moves when the inputs move by a rounding: no honest kernel
            can be asked to be nearer. None where the accuracy class is exact.
    """

    name: str
    case: Case
    arguments: tuple[Any, ...]
    family: Family
    expected: Any
    after: tuple[Any, ...]
    oracle: Any
    slack: tuple[Error, ...] | None = None

    @property
    def unstable(self) -> bool:
        """Whether a rounding decides which of very different answers is given: a tie between experts, mostly."""
        return self.slack is not None and any(e.peak > 0.05 for e in self.slack)

    def ill_conditioned(self, dtype: torch.dtype) -> bool:
        """Whether others could by chance be further from the oracle than the reference in ``dtype`` is."""
        rounding = ROUNDING.get(dtype, ROUNDING[torch.float32])
        expected = tensors(self.expected)
        own = [measure(e, o) for e, o in zip(expected, tensors(self.oracle), strict=True)]
        far = worst([*own, *(self.slack or ())])
        if far.l2 > ILL_L2 * rounding or far.peak > ILL_PEAK * rounding:
            return True
        if all(e.is_floating_point() for e in expected):
            return False
        return any(tied(e) for e in expected if e.is_floating_point())


class Referee:
    """The reference of one case in the bench's dtype and in float64, over one set of parameter values.

    Args:
        reference: the built reference; drawn from ``seed`` if None.
    """

    def __init__(
        self,
        task: Task,
        case: Case,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        seed: int,
        reference: nn.Module | None = None,
    ) -> None:
        self.task, self.case, self.dtype, self.device = task, case, dtype, torch.device(device)
        self.reference = reference or task.build(case, seed=seed, device=device, dtype=dtype)
        self.oracle = copy.deepcopy(self.reference).double()
        self._chooses = chooses(task, self.reference)

    def draw(self, seed: int) -> tuple[Any, ...]:
        """The case's own draw, packed. On a GPU it is drawn there: millions of numbers from a CPU take a while."""
        if self.device.type == "cuda":
            there = torch.Generator(self.device).manual_seed(seed)
            try:
                with torch.device(self.device):
                    return pack(self.case.draw(there, self.device, self.dtype))
            except DEVICE_FAILS:
                raise
            except (RuntimeError, ValueError, TypeError):
                pass  # a case that mixes in tensors of the CPU's
        return pack(self.case.draw(torch.Generator().manual_seed(seed), self.device, self.dtype))

    def expect(self, arguments: tuple[Any, ...], *, name: str, family: Family = "random") -> Drawn | None:
        """What the reference says of these packed arguments; None where it refuses them or says nothing.

        It says nothing where a result is not finite: a kernel that overflows elsewhere is no worse.

        Raises:
            torch.OutOfMemoryError: there is no room for the reference, or for float64.
            torch.AcceleratorError: the device has failed under the reference.
        """
        after = clone(arguments)
        with torch.no_grad():
            try:
                expected = self.reference(*unpack(after))
                oracle = self.oracle(*unpack(widened(arguments)))
            except DEVICE_FAILS:
                raise
            except REFUSES:
                return None
            expected = clone(pack(expected))  # it may be, or share, an argument
            found = tensors(expected)
            if not found and not self.task.mutates:
                return None
            if not all(bool(torch.isfinite(t).all()) for t in (*found, *tensors(oracle))):
                return None
            slack = self._slack(arguments, tensors(oracle))
        return Drawn(
            name=name,
            case=self.case,
            arguments=arguments,
            family=family,
            expected=expected,
            after=after,
            oracle=oracle,
            slack=slack,
        )

    def _slack(self, arguments: tuple[Any, ...], oracle: list[torch.Tensor]) -> tuple[Error, ...] | None:
        if self.task.accuracy.floor.get(self.dtype) == 0:
            return None
        # What is one kernel accumulates in float32; between kernels values are rounded to the dtype.
        size = torch.finfo(torch.float32 if self.task.level == 1 else self.dtype).eps
        size *= 2.0 if self._chooses else 1.0 if self.task.level == 1 else 0.5
        found = [Error(l2=0.0, peak=0.0)] * len(oracle)
        for i in range(1 if _many(arguments) and not self._chooses else PROBES):
            near = moved(widened(arguments), size, tie=TIE if self._chooses else 0.0, seed=i)
            outputs = tensors(self.oracle(*unpack(near)))
            found = [worst([f, measure(m, o)]) for f, m, o in zip(found, outputs, oracle, strict=True)]
        return tuple(found)

    def random(self, seeds: Iterator[int], *, name: str) -> Drawn | None:
        """A draw of the case that does not turn on a rounding, if one of several is such, else the last.

        Of many tokens some always do: there ``slack`` says how many.
        """
        found = None
        for _ in range(REDRAWS):
            drawn = self.expect(self.draw(next(seeds)), name=name)
            found = drawn or found
            if drawn is not None and (not drawn.unstable or _many(drawn.arguments)):
                break
        return found


def drawn_inputs(
    task: Task,
    case: Case,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    reference: nn.Module | None = None,
    hidden: bool = True,
) -> Iterator[Drawn]:
    """Five random draws, the structured families, and the hidden shapes, as far as the reference takes them.

    Args:
        hidden: False leaves hidden shapes out.
        seed: of inputs, and of the parameters where ``reference`` is None. Secret until the candidate is imported.
    """
    referee = Referee(task, case, dtype=dtype, device=device, seed=seed, reference=reference)
    seeds = _seeds(seed)
    natural = referee.draw(next(seeds))
    if any(t.numel() == 0 for t in tensors(natural)):
        drawn = referee.expect(natural, name="empty")
        yield from [drawn] if drawn is not None else []
        return
    for i in range(RANDOM_DRAWS):
        drawn = referee.random(seeds, name=f"random_{i}")
        yield from [drawn] if drawn is not None else []
    done: set[str] = set()
    large = LARGE if task.level == 1 and dtype != torch.float16 else LARGE_PRODUCTS
    for name, arguments in structured(natural, torch.Generator().manual_seed(next(seeds)), large=large):
        drawn = None if name in done else referee.expect(arguments, name=name, family="structured")
        if drawn is not None and not drawn.ill_conditioned(dtype):
            done.add(name)
            yield drawn
    if hidden:
        yield from _hidden(referee, natural, seeds)


def not_benchable(task: Task, case: Case, *, device: torch.device | str = "cpu") -> str | None:
    """Why this case cannot be given to another process, or None.

    >>> from fastkernels.tasks import get_task
    >>> cases = {c.name: c for c in get_task("served_layer").cases()}
    >>> not_benchable(get_task("served_layer"), cases["gqa"]) is None
    True
    >>> print(not_benchable(get_task("served_layer"), cases["two_ranks"]))
    an argument is '_draw.<locals>.arguments.<locals>.<lambda>', which no other process can be given
    """
    return unpackable(pack(case.draw(torch.Generator().manual_seed(0), torch.device(device), torch.float32)))


def _hidden(referee: Referee, natural: tuple[Any, ...], seeds: Iterator[int]) -> Iterator[Drawn]:
    """The case with other leading sizes and other sequence lengths; sizes that the constructor fixes stay."""
    plain = unpack(natural)
    fixed = {v for v in pytree.tree_leaves(dict(referee.case.init)) if isinstance(v, int)}
    rows = leading(plain)
    changes = [("rows", rows, size) for size in _sizes(rows)] if rows else []
    lengths = sequences(plain)
    for old in (n for n in lengths if n and n not in fixed):
        others = max((n for n in lengths if n != old), default=None)
        # Queries stay no longer than their keys.
        fits = [n for n in _sizes(old) if others is None or (n >= others if old > others else n <= max(lengths))]
        changes += [("sequence", old, n) for n in fits if n]
    other = unpack(referee.draw(next(seeds)))
    for what, old, new in changes:
        if new == 0 and not _takes_nothing(referee.task.name):
            continue
        for last in (False,) * (HIDDEN_REDRAWS - 1) + (True,):
            draws = [other, *(unpack(referee.draw(next(seeds))) for _ in range(math.ceil(new / old) - 1))]
            arguments = pack(resized(draws, old=old, new=new, first_axis=what == "rows"))
            drawn = referee.expect(arguments, name=f"{what}_{old}_as_{new}", family="hidden")
            if drawn is None or not drawn.unstable or last:
                break
            other = unpack(referee.draw(next(seeds)))
        if drawn is not None and (drawn.unstable or not drawn.ill_conditioned(referee.dtype)):
            yield drawn


def _sizes(old: int) -> list[int]:
    sizes = (*HIDDEN_SIZES, old - 1) if old > max(HIDDEN_SIZES) else HIDDEN_SIZES
    return [n for n in dict.fromkeys(sizes) if n != old]


@functools.cache
def _takes_nothing(name: str) -> bool:
    """Whether a task has a case without rows: only then is it asked of a candidate."""
    generator = torch.Generator().manual_seed(0)
    small = (c for c in all_tasks()[name].cases() if not c.production)
    drawn = (c.draw(generator, torch.device("cpu"), torch.float32) for c in small)
    return any(t.numel() == 0 for arguments in drawn for t in tensors(arguments))


def _seeds(seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield int(torch.randint(2**62, (), generator=generator))


def _many(arguments: Any) -> bool:
    return sum(t.numel() for t in tensors(arguments)) > FEW_ELEMENTS


def widened(arguments: Any) -> Any:
    """Copies of packed arguments, floating-point tensors in float64."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), arguments)


def clone(value: Any) -> Any:
    """Copies of all tensors, each in memory of its own, strides kept where they are dense."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.clone(), value)
