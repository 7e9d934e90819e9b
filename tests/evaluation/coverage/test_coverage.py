"""Coverage: which sites count for which task, on real models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastkernels
from fastkernels.evaluation.coverage.coverage import coverage, coverage_of
from fastkernels.evaluation.coverage.result import Coverage
from fastkernels.tasks.L1 import rotary_emb, silu_and_mul
from fastkernels.tasks.L2 import gated_mlp
from tests.conftest import tiny_llama


class Rotary(rotary_emb.RotaryEmbedding):
    """A candidate of a task that has no module of its own in a Llama."""


class Activation(silu_and_mul.SiluAndMul):
    """Likewise."""


class Mlp(gated_mlp.LlamaMLP):
    """A candidate of a task that has one."""


class WrongMlp(gated_mlp.LlamaMLP):
    """A candidate that patch() turns away."""

    def forward(self, x):
        return super().forward(x) * 1.5


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_llama(hidden_size=128, intermediate_size=512, num_hidden_layers=2)


@pytest.fixture(scope="module")
def shipped(model) -> Coverage:
    return coverage(model, "shipped", run_of(model))


def run_of(model: nn.Module):
    ids = torch.randint(101, (2, 48), generator=torch.Generator().manual_seed(1))

    def run():
        with torch.no_grad():
            model(ids)

    return run


def by_task(found: Coverage):
    return {task.task: task for task in found.tasks}


def test_within_a_carrier_the_sites_of_real_candidates_count(shipped):
    tasks = by_task(shipped)
    assert tasks["causal_lm"].model_dump() == {"task": "causal_lm", "sites": 1, "applied": 0, "share": None}
    assert (tasks["gated_mlp"].applied, tasks["attention_block"].applied, tasks["rms_norm"].applied) == (2, 2, 5)
    assert min(tasks[t].share for t in ("gated_mlp", "attention_block", "rms_norm")) > 0
    assert shipped.applied == 9
    assert 0.3 < shipped.share < 1


def test_shares_add_up_to_the_whole(shipped):
    assert sum(t.share or 0.0 for t in shipped.tasks) == pytest.approx(shipped.share)
    assert shipped.share + sum(shipped.outside.values()) == pytest.approx(1.0)
    assert "LlamaMLP" not in shipped.outside
    assert "Linear" in shipped.outside  # the head, which nobody replaces


def test_functional_sites_have_no_share_of_their_own(model):
    found = coverage(model, {"rotary_emb": Rotary, "silu_and_mul": Activation, "gated_mlp": Mlp}, run_of(model))
    tasks = by_task(found)
    assert tasks["rotary_emb"].share is None
    assert tasks["rotary_emb"].applied == 2
    assert found.share == pytest.approx(tasks["gated_mlp"].share)
    assert found.share < 1


def test_a_whole_model_that_is_replaced_is_all_of_it(model):
    found = coverage(model, "reference", run_of(model))
    assert by_task(found)["causal_lm"].applied == 1
    assert found.share == pytest.approx(1.0, abs=0.05)
    assert [t.task for t in found.tasks if t.share] == ["causal_lm"]


def test_only_selected_sites_count(model):
    one = coverage(model, {"gated_mlp": Mlp}, run_of(model), select="model.layers.0.mlp")
    both = coverage(model, {"gated_mlp": Mlp}, run_of(model))
    assert (by_task(one)["gated_mlp"].applied, by_task(both)["gated_mlp"].applied) == (1, 2)
    assert 0 < one.share < both.share


def test_candidates_that_are_turned_away_cover_nothing(model):
    found = coverage(model, {"gated_mlp": WrongMlp}, run_of(model))
    assert (found.applied, found.share) == (0, 0.0)
    assert 0.9 < sum(found.outside.values()) <= 1.0  # the smallest of its classes is not named


def test_the_model_is_unpatched_at_the_end(model):
    before = [dict(vars(m)) for m in model.modules()]
    coverage(model, {"gated_mlp": Mlp}, run_of(model))
    assert [dict(vars(m)) for m in model.modules()] == before


def test_the_report_of_another_process_is_enough(model):
    twin = tiny_llama(hidden_size=128, intermediate_size=512, num_hidden_layers=2)
    with fastkernels.patch(model, {"gated_mlp": Mlp}) as handle:
        told = handle.report.model_dump_json()
    found = coverage_of(fastkernels.Report.model_validate_json(told), twin, run_of(twin))
    assert found.applied == 2
    assert found.share > 0


@pytest.mark.gpu
def test_shares_of_device_time_add_up():
    model = tiny_llama(hidden_size=512, intermediate_size=1408, num_hidden_layers=4).cuda().bfloat16()
    ids = torch.randint(101, (4, 64), device="cuda")
    with torch.no_grad():
        found = coverage(model, "shipped", lambda: model(ids))
    assert found.clock == "device"
    assert 0.3 < found.share < 1
    assert found.share + sum(found.outside.values()) == pytest.approx(1.0)
