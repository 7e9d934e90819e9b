"""The cost of every task is sane; that tasks are worth winning is ``test_quality``'s."""

from __future__ import annotations

import pytest
import torch

from fastkernels.tasks import Case, Task, all_tasks
from fastkernels.tasks.tensors import tensors

SMALL = [(task, case) for task in all_tasks().values() for case in task.cases() if not case.production]


@pytest.mark.parametrize(("task", "case"), SMALL, ids=[f"{t.name}-{c.name}" for t, c in SMALL])
def test_cost_is_at_least_the_output_written_once(task: Task, case: Case) -> None:
    arguments = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), torch.float32)
    module = task.build(case)
    cost = task.cost(module, *arguments)
    with torch.no_grad():
        written = sum(t.numel() * t.element_size() for t in tensors(module(*arguments)))
    assert cost.bytes >= written and cost.flops >= 0
