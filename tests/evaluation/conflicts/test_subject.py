"""Calls are redrawn to other row counts where the reference says that rows are independent, and only there."""

from __future__ import annotations

import pytest
import torch

from fastkernels.evaluation.conflicts.compare import same_bits
from fastkernels.evaluation.conflicts.subject import Subject, tensors
from fastkernels.runtime.load import reference_candidate
from fastkernels.tasks import all_tasks, get_task


def subject(task):
    return Subject(candidate=reference_candidate(get_task(task)), device=torch.device("cpu"), buckets=(1, 17))


@pytest.mark.parametrize("task", [t for t in all_tasks() if all_tasks()[t].level < 3])
def test_every_task_has_calls_in_every_bucket(task):
    s = subject(task)
    calls = list(s.calls())
    assert calls
    for call in calls:
        assert call.rows in (None, 1, 17)
        with torch.no_grad():
            outputs = tensors(s.build(call)(*s.draw(call)))
        assert call.rows is None or outputs[0].shape[0] == call.rows


def test_the_same_seed_draws_the_same_values():
    s = subject("rms_norm")
    call = next(iter(s.calls()))
    assert same_bits(s.draw(call), s.draw(call)) and not same_bits(s.draw(call), s.draw(call, seed=1))


def test_a_batch_of_seventeen_holds_seventeen_different_rows():
    s = subject("silu")
    call = next(c for c in s.calls() if c.rows == 17)
    (x,) = s.draw(call)
    assert len(torch.unique(x, dim=0)) == 17
