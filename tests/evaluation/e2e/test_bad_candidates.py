"""Whatever a candidate does instead of its task, it ends with the score 0 and the reason."""

from __future__ import annotations

import pytest

import fastkernels
from tests.evaluation.e2e.tiny_scenario import CANDIDATES, scenario


def verdict(tmp_path, name, *, modes="eager", rounds=4, **options):
    found = fastkernels.evaluate(
        scenario(tmp_path, modes=modes, rounds=rounds),
        CANDIDATES / name,
        out=tmp_path / "run",
        device="cpu",
        threads=1,
        **options,
    )
    (model,) = found.models
    return model


def zero(model):
    """No score, no speed-up to be seen anywhere, and a reason."""
    return model.score == 0 and not model.passed and model.reason and all(w.speedup is None for w in model.workloads)


def test_a_right_candidate_passes_with_full_correctness(tmp_path):
    model = verdict(tmp_path, "right")
    assert (model.passed, model.reason, model.score) == (True, "", 1.0)
    (workload,) = model.workloads
    assert len(workload.rounds) == 4
    assert all(arm.blocks == 8 for arm in workload.arms.values())
    assert workload.speedup.low <= workload.speedup.value <= workload.speedup.high
    assert model.arms["baseline"].dispatchers == model.arms["baseline"].dispatcher_calls == 0
    assert model.arms["candidate"].interposition.tasks["rms_norm"].proven
    assert model.correctness[0].timed_outputs == 1.0


def test_one_that_is_5_percent_off_is_not_let_in(tmp_path):
    model = verdict(tmp_path, "wrong_by_5_percent")
    assert zero(model)
    assert "off by" in model.reason


@pytest.mark.slow
def test_one_that_is_5_percent_off_does_not_pass_the_gate_where_nothing_else_looks(tmp_path):
    model = verdict(tmp_path, "wrong_by_5_percent", verify=False)
    assert zero(model)
    assert model.correctness[0].score < 0.5
    assert not model.workloads


@pytest.mark.slow
def test_one_that_is_right_only_in_eager_is_not_let_into_graphs(tmp_path):
    model = verdict(tmp_path, "right_only_in_eager", lowering="inline")
    assert zero(model)
    assert "its traced graph computes something else than its code does" in model.reason


@pytest.mark.slow
def test_one_that_is_wrong_in_large_graphs_only_is_judged_in_every_mode(tmp_path):
    model = verdict(tmp_path, "wrong_in_large_graphs", modes="eager, default", rounds=2, lowering="inline")
    assert zero(model)
    assert {c.mode: c.passed for c in model.correctness} == {"eager": True, "default": False}


def test_one_that_stops_working_after_some_calls_is_found_in_the_outputs_of_timed_calls(tmp_path):
    model = verdict(tmp_path, "stops_after_n_calls", rounds=6)
    assert zero(model)
    assert model.correctness[0].timed_outputs < 0.5
    assert "of the outputs of a timed block" in model.reason or "after them" in model.reason


@pytest.mark.slow
def test_one_that_emits_fewer_tokens_fails(tmp_path):
    model = verdict(tmp_path, "emits_fewer_tokens", verify=False)
    assert zero(model)
    assert "1 of 2" in model.reason


def test_a_patch_that_matches_nothing_is_no_run(tmp_path):
    model = verdict(tmp_path, "matches_nothing")
    assert zero(model)
    assert "no candidate applies" in model.reason


@pytest.mark.slow
def test_one_that_kills_its_process_is_a_result_with_its_signal(tmp_path):
    model = verdict(tmp_path, "crashes")
    assert zero(model)
    assert "SIGSEGV" in model.reason
