"""Every task judges itself: its witness passes, its cheats fail, its costs are sane."""

from __future__ import annotations

import copy

import pytest
import torch

from fastkernels.tasks import Case, Task, all_tasks
from fastkernels.tasks.accuracy import Error, measure, worst

SMALL = [(task, case) for task in all_tasks().values() for case in task.cases() if not case.production]
DTYPES = (torch.float32, torch.bfloat16)


def flat(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for r in result for t in flat(r)] if isinstance(result, (tuple, list)) else []


def cast(argument: object, dtype: torch.dtype) -> object:
    if isinstance(argument, torch.Tensor):
        return argument.to(dtype) if argument.is_floating_point() else argument.clone()
    if isinstance(argument, (tuple, list)):
        return type(argument)(cast(a, dtype) for a in argument)
    return copy.deepcopy(argument)


@torch.no_grad()
def errors(task: Task, case: Case, implementation: type, dtype: torch.dtype) -> tuple[Error, Error]:
    """Errors of an implementation and of the reference, both in ``dtype``, against the reference in float64."""
    arguments = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), dtype)
    reference = task.build(case, dtype=dtype)
    oracle = flat(reference.double()(*cast(arguments, torch.float64)))
    baseline = flat(task.build(case, dtype=dtype)(*cast(arguments, dtype)))
    got = flat(task.build(case, implementation=implementation, dtype=dtype)(*cast(arguments, dtype)))
    assert len(got) == len(oracle) == len(baseline) > 0
    for g, b in zip(got, baseline, strict=True):
        assert g.dtype == b.dtype and g.shape == b.shape
    return worst([measure(*p) for p in zip(got, oracle, strict=True)]), worst(
        [measure(*p) for p in zip(baseline, oracle, strict=True)]
    )


@pytest.mark.parametrize(("task", "case"), SMALL, ids=[f"{t.name}-{c.name}" for t, c in SMALL])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_witness_passes_the_accuracy_class(task: Task, case: Case, dtype: torch.dtype) -> None:
    candidate, baseline = errors(task, case, task.witness, dtype)
    assert task.accuracy.accepts(candidate, baseline, dtype), (candidate, task.accuracy.limit(baseline, dtype))


@pytest.mark.parametrize("task", all_tasks().values(), ids=list(all_tasks()))
def test_each_cheat_fails_at_least_one_case(task: Task) -> None:
    assert task.anti_witnesses, f"{task.name} has no anti-witness"
    for cheat in task.anti_witnesses:
        caught = [
            case.name
            for case in task.cases()
            if not case.production
            for candidate, baseline in [errors(task, case, cheat, torch.float32)]
            if not task.accuracy.accepts(candidate, baseline, torch.float32)
        ]
        assert caught, f"{task.name}: {cheat.__name__} passes every case"


@pytest.mark.parametrize(("task", "case"), SMALL, ids=[f"{t.name}-{c.name}" for t, c in SMALL])
def test_cost_is_at_least_the_output_written_once(task: Task, case: Case) -> None:
    arguments = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), torch.float32)
    module = task.build(case)
    cost = task.cost(module, *arguments)
    with torch.no_grad():
        written = sum(t.numel() * t.element_size() for t in flat(module(*arguments)))
    assert cost.bytes >= written and cost.flops >= 0
