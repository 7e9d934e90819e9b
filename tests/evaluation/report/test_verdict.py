"""The sentence: what it claims, and what it never claims."""

import re

import pytest

from fastkernels.evaluation.e2e.result import Interval
from fastkernels.evaluation.report.judged import judge
from tests.evaluation.runs import MODELS, make_run

RATIO = re.compile(r"\d\.\d+x")


def said(run):
    return judge([run])[0].verdict


def test_all_passed_says_speed_interval_models_and_outputs():
    found = said(make_run(speedup=1.24))
    assert found.state == "passed"
    assert re.match(r"shipped is 1\.2\d+x \[1\.2\d+, 1\.2\d+\] as fast as the strongest unpatched run", found.sentence)
    assert "on 4 of 4 models" in found.sentence
    assert "as close to the fp32 oracle as production's own" in found.sentence


def test_failed_models_are_counted_and_named_with_their_reason():
    found = said(make_run(failed=["vit-base"], crashed=["bge-m3"]))
    assert found.state == "partly"
    assert "on 2 of 4 models" in found.sentence
    assert "2 models failed: bge-m3: candidate arm: process ended with signal 11" in found.sentence
    assert "vit-base: eager: argmax agreement" in found.sentence


@pytest.mark.parametrize("how", ["failed", "crashed"])
def test_a_run_without_a_pass_shows_no_ratio(how):
    found = said(make_run(speedup=9.0, **{how: list(MODELS)}))
    assert found.state == "failed"
    assert found.speedup is None
    assert found.sentence.startswith("shipped scores 0: 4 models failed")
    assert not RATIO.search(found.sentence)


def test_a_broken_result_with_a_speedup_on_a_red_gate_or_invalid_run_counts_as_failed():
    run = make_run(models={"llama-8b": "llm"}, speedup=3.0)
    for changed in ({"valid": False}, {"passed": False}):
        broken = run.model_copy(
            update={"models": [run.models[0].model_copy(update={**changed, "reason": "not proven"})]}
        )
        judged = judge([broken])[0]
        assert judged.verdict.sentence == "shipped scores 0: 1 model failed: llama-8b: not proven"
        assert judged.score.score.value == 0
        assert all(w.speedup is None and w.latency is None for w in judged.run.models[0].workloads)


def test_the_number_is_the_scores_S_where_every_category_passed():
    judged = judge([make_run()])[0]
    assert judged.verdict.speedup == judged.score.S


def test_lesser_outputs_are_said_with_C():
    assert "farther from the fp32 oracle than production's own (C = 0.80" in said(make_run(correctness=0.8)).sentence


def test_the_oracle_is_named_by_its_precision():
    run = make_run(models={"llama-8b": "llm"})
    for judged in run.models[0].correctness:
        judged.oracle = "oracle: float64, eager; control: float32 weights with noise"
    assert "as close to the fp64 oracle as" in said(run).sentence


def test_equal_speed_is_called_no_difference():
    assert "(no difference)" in said(make_run(speedup=1.0, noise=0.02)).sentence


def test_a_slower_workload_is_named_though_the_mean_is_faster():
    found = said(make_run(models={"llama-8b": "llm", "bge-m3": "embedding"}, speedup={"llama-8b": 1.5, "bge-m3": 0.9}))
    assert "slower on bge-m3 Embedding.fixed_batch (0.9" in found.sentence


def test_a_null_arm_off_one_is_said():
    run = make_run(models={"llama-8b": "llm"})
    run.models[0].workloads[0].null = Interval(value=0.9, low=0.89, high=0.91)
    assert "the null arm is off 1.00 on llama-8b LLM.single_request (0.90x)" in said(run).sentence
