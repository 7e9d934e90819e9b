"""Is a task worth winning? Whether its inputs and weights matter, its outputs vary, and cheats are told from work.

Each rule tries the laziest output that breaks it; a task is weak where its own accuracy class takes that output."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.tasks.accuracy import Error, measure, worst
from fastkernels.tasks.task import Case, Task
from fastkernels.tasks.tensors import tensors

Rule = Literal["witness", "anti-witness", "input", "weight", "axis", "range"]
MARGIN = 2.0  # what matters moves the output this many times further than the accuracy class allows
MOSTLY = 0.9  # a value that more of an output's elements share is a safe guess
# What no case of these edges can show, and why. Other cases of the same tasks show it.
BY_NATURE: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("softmax", "one_column"): "a single element sums to one by itself",
        ("topk_softmax", "one_kept"): "one expert, renormalised, has all the weight",
        ("softmax", "large_values"): "a spread of thousands leaves one winner a row",
    }
)
# Cheats that are honest work in these dtypes, and why.
HALVES = (torch.bfloat16, torch.float16)
NO_CHEATS: Mapping[tuple[str, str], tuple[torch.dtype, ...]] = MappingProxyType(
    {
        # The two formulas differ by less than 5e-4, which is below one rounding.
        ("gelu", "OtherApproximation"): HALVES,
        ("gelu_and_mul", "OtherApproximation"): HALVES,
    }
)


@dataclass(frozen=True, kw_only=True)
class Weakness:
    """A rule that a task breaks in a dtype, in one case or (``case`` empty) in all of them."""

    task: str
    case: str
    dtype: torch.dtype
    rule: Rule
    detail: str

    def __str__(self) -> str:
        where = f" {self.case}" if self.case else ""
        return f"{self.task}{where} {str(self.dtype).removeprefix('torch.')}: {self.rule}: {self.detail}"


@dataclass(kw_only=True)
class Trial:
    """A case once drawn and run: the reference in ``dtype``, what it returned, and the same in a wider dtype."""

    task: Task
    case: Case
    dtype: torch.dtype
    reference: nn.Module
    arguments: tuple[Any, ...]
    outputs: list[torch.Tensor]
    oracle: list[torch.Tensor]

    @classmethod
    @torch.no_grad()
    def run(cls, task: Task, case: Case, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Trial:
        """Draws and runs ``case``; the oracle is the reference in float64 over the same rounded values."""
        arguments = draw(case, dtype=dtype, device=device)
        reference = task.build(case, dtype=dtype, device=device)
        wide = copy.deepcopy(reference).double()
        return cls(
            task=task,
            case=case,
            dtype=dtype,
            reference=reference,
            arguments=arguments,
            outputs=tensors(reference(*cast(arguments, dtype))),
            oracle=tensors(wide(*cast(arguments, torch.float64))),
        )

    def errors(self, outputs: list[torch.Tensor]) -> list[Error]:
        """The distance of each output from the oracle."""
        return [measure(got, want) for got, want in zip(outputs, self.oracle, strict=True)]

    @cached_property
    def limits(self) -> list[Error]:
        """What the accuracy class allows of each output: one that is hard to hit does not excuse the others."""
        return [self.task.accuracy.limit(e, self.dtype) for e in self.errors(self.outputs)]

    def accepts(self, outputs: list[torch.Tensor], *, margin: float = 1.0) -> bool:
        """Whether the accuracy class takes ``outputs``, or would if it were ``margin`` times as wide (for integers,
        of which a share may be wrong, it is as wide as it is)."""
        return all(
            error.l2 <= wide * limit.l2 and error.peak <= wide * limit.peak
            for output, error, limit in zip(outputs, self.errors(outputs), self.limits, strict=True)
            for wide in [margin if output.is_floating_point() else 1.0]
        )

    @torch.no_grad()
    def of(self, module: nn.Module, arguments: tuple[Any, ...] | None = None) -> list[torch.Tensor]:
        """What ``module`` returns for these arguments, the trial's own by default."""
        return tensors(module(*cast(self.arguments if arguments is None else arguments, self.dtype)))


def weaknesses(
    task: Task,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cases: Iterable[Case] | None = None,
) -> list[Weakness]:
    """Every rule that ``task`` breaks in ``dtype``; none for a sound task.

    The witness must pass every case. Each cheat must fail one, unless it is bit for bit the reference in this dtype.
    Each argument and each parameter must matter in some case. No output may be constant along an axis, mostly one
    value, or not finite, in any case but those in ``BY_NATURE``.

    Args:
        cases: instead of the task's own small ones, such as captured ones.

    >>> from fastkernels.tasks import get_task
    >>> weaknesses(get_task("silu"))
    []
    """
    chosen = [c for c in task.cases() if not c.production] if cases is None else list(cases)
    trials = [Trial.run(task, case, dtype=dtype, device=device) for case in chosen]
    judged = [t for t in trials if any(o.numel() for o in t.oracle)]
    found = [*_witness(trials), *_cheats(judged), *_inputs(judged), *_weights(judged)]
    return found + [w for trial in judged for w in case_weaknesses(trial)]


def case_weaknesses(trial: Trial) -> list[Weakness]:
    """What is wrong with one case: outputs that a constant predicts, or that are not finite."""
    if (trial.task.name, trial.case.name) in BY_NATURE:
        return []
    return [_weak(trial, rule, detail) for rule, detail in (*_axes(trial), *_range(trial))]


def draw(case: Case, *, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 1) -> tuple[Any, ...]:
    """Arguments of ``case``; the same seed gives the same values."""
    return case.draw(torch.Generator().manual_seed(seed), torch.device(device), dtype)


def cast(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Copies of ``arguments``, floating tensors in ``dtype``."""

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value.clone()
        return copy.deepcopy(value)

    return pytree.tree_map(one, arguments)


def _weak(trial: Trial, rule: Rule, detail: str, *, everywhere: bool = False) -> Weakness:
    case = "" if everywhere else trial.case.name
    return Weakness(task=trial.task.name, case=case, dtype=trial.dtype, rule=rule, detail=detail)


def _built(trial: Trial, implementation: type[nn.Module]) -> nn.Module:
    device = next((t.device for t in tensors(trial.arguments)), torch.device("cpu"))
    return trial.task.build(trial.case, implementation=implementation, dtype=trial.dtype, device=device)


def _witness(trials: list[Trial]) -> Iterator[Weakness]:
    for trial in trials:
        outputs = trial.of(_built(trial, trial.task.witness))
        if [(o.shape, o.dtype) for o in outputs] != [(o.shape, o.dtype) for o in trial.outputs]:
            yield _weak(trial, "witness", f"{trial.task.witness.__name__} returns other shapes or dtypes")
        elif not trial.accepts(outputs):
            yield _weak(trial, "witness", f"{trial.task.witness.__name__} is refused: {worst(trial.errors(outputs))}")


def _cheats(trials: list[Trial]) -> Iterator[Weakness]:
    for cheat in trials[0].task.anti_witnesses if trials else ():
        if trials[0].dtype in NO_CHEATS.get((trials[0].task.name, cheat.__name__), ()):
            continue
        same = True
        for trial in trials:
            outputs = trial.of(_built(trial, cheat))
            if not trial.accepts(outputs):
                break
            same = same and all(torch.equal(a, b) for a, b in zip(outputs, trial.outputs, strict=True))
        else:
            if not same:
                yield _weak(trials[0], "anti-witness", f"{cheat.__name__} passes every case", everywhere=True)


def _inputs(trials: list[Trial]) -> Iterator[Weakness]:
    """Arguments that could be any other, or left out, in every case that has them."""
    if not trials:
        return
    names = [str(p) for p in list(inspect.signature(trials[0].task.interface.forward).parameters)[1:]]
    for i, name in enumerate(names):
        lazy: dict[str, bool] = {}  # what could be done to the argument, and whether every case let it pass
        for trial in trials:
            for what, changed in _changes(trial, i):
                lazy[what] = lazy.get(what, True) and trial.accepts(trial.of(trial.reference, changed), margin=MARGIN)
            if lazy and not any(lazy.values()):
                break
        for what, passes in lazy.items():
            if passes:
                yield _weak(trials[0], "input", f"{name} may be {what} in every case", everywhere=True)


def _changes(trial: Trial, i: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The arguments with the ``i``-th drawn again, and left out where it may be."""
    arguments = trial.arguments
    if i >= len(arguments) or arguments[i] is None or not isinstance(arguments[i], (torch.Tensor, tuple, nn.Module)):
        return
    device = next((t.device for t in tensors(arguments)), torch.device("cpu"))
    other = draw(trial.case, dtype=trial.dtype, device=device, seed=2)[i]
    if isinstance(other, nn.Module) or any(
        a.shape == b.shape and not torch.equal(a, b) for a, b in zip(tensors(arguments[i]), tensors(other), strict=True)
    ):
        yield "drawn again", (*arguments[:i], other, *arguments[i + 1 :])
    parameters = list(inspect.signature(trial.task.interface.forward).parameters.values())[1:]
    without = (*arguments[:i], None, *arguments[i + 1 :])
    if parameters[i].default is None and _returns_as_many(trial, without):
        yield "left out", without


def _returns_as_many(trial: Trial, arguments: tuple[Any, ...]) -> bool:
    try:
        return len(trial.of(trial.reference, arguments)) == len(trial.oracle)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it may not be left out here
        return False


def _weights(trials: list[Trial]) -> Iterator[Weakness]:
    """Parameters that could have any other value in every case that has them."""
    unproven: dict[str, Trial] = {}
    proven: set[str] = set()
    for trial in trials:
        for name, parameter in trial.reference.named_parameters():
            if name in proven:
                continue
            unproven.setdefault(name, trial)
            if not trial.accepts(_with_other(trial, parameter), margin=MARGIN):
                proven.add(name)
    for name, trial in unproven.items():
        if name not in proven:
            yield _weak(trial, "weight", f"{name} may have any value in every case", everywhere=True)


@torch.no_grad()
def _with_other(trial: Trial, parameter: nn.Parameter) -> list[torch.Tensor]:
    kept = parameter.clone()
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(2))
    scale = kept.shape[-1] ** -0.5 if kept.dim() > 1 else 1.0
    parameter.copy_(noise * scale + (1.0 if kept.dim() == 1 else 0.0))
    try:
        return trial.of(trial.reference)
    finally:
        parameter.copy_(kept)


def _axes(trial: Trial) -> Iterator[tuple[Rule, str]]:
    """Outputs that repeat along an axis: one slice computed would do for all."""
    for i, output in enumerate(trial.oracle):
        for axis, size in enumerate(output.shape):
            if size == 1 or output.numel() == 0:
                continue
            outputs = list(trial.outputs)
            outputs[i] = _flattened(output, axis).to(outputs[i].dtype)
            if trial.accepts(outputs, margin=MARGIN):
                yield "axis", f"output {i} {tuple(output.shape)} is the same all along axis {axis}"


def _flattened(output: torch.Tensor, axis: int) -> torch.Tensor:
    """The best guess that does not vary along ``axis``."""
    if output.is_floating_point():
        return output.mean(axis, keepdim=True).expand(output.shape)
    return output.mode(axis, keepdim=True).values.expand(output.shape)


def _range(trial: Trial) -> Iterator[tuple[Rule, str]]:
    """Outputs that overflow, or that one value guesses mostly right."""
    for i, output in enumerate(trial.outputs):
        if output.numel() < 16:
            continue
        if output.is_floating_point() and not bool(output.isfinite().all()):
            yield "range", f"output {i} is not finite everywhere"
        _, counts = output.flatten().unique(return_counts=True)
        share = float(counts.max()) / output.numel()
        if share > MOSTLY:
            yield "range", f"{share:.0%} of output {i} are one value"
