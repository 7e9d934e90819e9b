"""MacroEval's score: S x C x Cov as defined, failures as 0, and noise carried through."""

import math

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.macroeval.score import model_names, score, set_digest
from tests.evaluation.runs import make_run

TWO = {"llama-8b": "llm", "bge-m3": "embedding"}
THREE = {"llama-8b": "llm", "qwen3-moe": "llm", "bge-m3": "embedding"}


def width(interval):
    return interval.high - interval.low


def test_score_is_the_product_and_s_is_geometric_over_categories():
    speedup = {"llama-8b": 1.2, "qwen3-moe": 1.5, "bge-m3": 0.9}
    found = score(make_run(models=THREE, speedup=speedup, noise=0, correctness=0.9))
    by_name = {c.category: c for c in found.categories}
    assert by_name["llm"].S.value == pytest.approx(math.sqrt(1.2 * 1.5))
    assert by_name["embedding"].S.value == pytest.approx(0.9)
    assert found.S.value == pytest.approx(math.sqrt(math.sqrt(1.2 * 1.5) * 0.9))
    assert (found.C, found.Cov) == pytest.approx((0.9, 1))
    assert found.score.value == pytest.approx(found.S.value * 0.9)
    assert width(found.score) == pytest.approx(0)


def test_speed_is_half_throughput_half_latency_over_all_workloads():
    run = make_run(models={"llama-8b": "llm"}, speedup=2.0, noise=0)
    for workload, ttft in zip(run.models[0].workloads, (1.0, 4.0), strict=True):
        for r in workload.rounds:
            r["candidate"].ttft_ms = r["baseline"].ttft_ms / ttft
            r["candidate"].tpot_ms = r["baseline"].tpot_ms
    [model] = score(run).models
    assert model.thru.value == pytest.approx(2)
    assert model.lat.value == pytest.approx(math.sqrt(1 * 2))  # sqrt(ttft x tpot) is 1 and 2
    assert model.speed.value == pytest.approx(math.sqrt(2 * math.sqrt(2)))


def test_a_failed_model_counts_as_zero_in_c_and_cov_and_gives_no_speed():
    found = score(make_run(models=THREE, noise=0, failed=("qwen3-moe",)))
    llm = found.categories[0]
    assert (llm.S.value, llm.C, llm.Cov) == pytest.approx((1.2, 0.5, 0.5))
    assert found.score.value == pytest.approx(1.2 * 0.75 * 0.75)
    failed = found.models[1]
    assert (failed.passed, failed.C, failed.speed) == (False, 0, None) and "control" in failed.reason


def test_a_crash_counts_like_a_red_gate():
    red, crash = (score(make_run(models=THREE, **{how: ("llama-8b",)})) for how in ("failed", "crashed"))
    assert crash.score.value == pytest.approx(red.score.value, rel=0.02)
    assert "SIGSEGV" in crash.models[0].reason


def test_a_category_without_a_pass_makes_the_score_zero_and_is_not_dropped():
    found = score(make_run(models=THREE, noise=0, failed=("bge-m3",)))
    assert (found.S.value, found.score.value, found.score.high) == (0, 0, 0)
    assert found.S_passed.value == pytest.approx(1.2)
    assert [c.category for c in found.categories] == ["llm", "embedding"]
    assert (found.C, found.Cov) == (0.5, 0.5)


def test_nothing_passed_is_zero_without_speed():
    found = score(make_run(models=TWO, failed=tuple(TWO)))
    assert (found.score.value, found.S_passed, found.C, found.Cov) == (0, None, 0, 0)


def test_correctness_of_a_model_is_the_least_over_its_gates():
    run = make_run(models=TWO, noise=0)
    run.models[0].correctness[1].score = 0.4
    found = score(run)
    assert round(found.C, 9) == 0.7


def test_interval_of_the_score_holds_the_truth_about_as_often_as_it_says():
    found = [score(make_run(models=TWO, noise=0.02, seed=seed)).score for seed in range(50)]
    held = sum(s.low <= 1.2 <= s.high for s in found)
    assert held >= 44


def test_noise_of_the_rounds_widens_the_interval():
    quiet, loud = (score(make_run(models=TWO, noise=noise)) for noise in (0.005, 0.05))
    assert width(loud.score) > 3 * width(quiet.score) and loud.noise > quiet.noise


def test_throughput_and_latency_of_a_workload_are_drawn_by_the_same_rounds():
    [model] = score(make_run(models={"bge-m3": "embedding"}, noise=0.05)).models  # its latency is its throughput
    assert model.thru.model_dump() == pytest.approx(model.lat.model_dump())
    assert width(model.speed) == pytest.approx(width(model.thru))


def test_workloads_are_drawn_independently():
    run = make_run(models={"llama-8b": "llm"}, noise=0.05)
    one, two = run.models[0].workloads
    two.rounds = one.rounds
    [twice] = score(run).models
    run.models[0].workloads = [one]
    [once] = score(run).models
    assert twice.speed.value == pytest.approx(once.speed.value)
    assert width(twice.speed) < 0.85 * width(once.speed)  # 1 / sqrt(2) of it, where drawn jointly it would be equal


def test_other_models_do_not_change_the_interval_of_one():
    alone, among = make_run(models={"llama-8b": "llm"}), make_run(models=TWO)
    among.models[0] = alone.models[0]
    assert score(among).models[0] == score(alone).models[0]


def test_models_of_one_name_are_told_apart():
    a, b, c, d = make_run().models[:4]
    b = b.model_copy(update={"model": a.model, "dtype": "float16"})
    c = c.model_copy(update={"model": a.model})
    assert model_names([a, b, c, d]) == [
        "llama-8b bfloat16 tp1 #1",
        "llama-8b float16 tp1",
        "llama-8b bfloat16 tp1 #2",
        "vit-base",
    ]


def test_a_pass_without_rounds_is_a_broken_result_and_named():
    run = make_run(models=TWO)
    run.models[1].workloads[0].rounds = run.models[1].workloads[0].rounds[:1]
    with pytest.raises(EvaluationError, match=r"bge-m3 Embedding\.fixed_batch: 1 complete rounds"):
        score(run)
    del run.models[0].workloads[0].rounds[3]["candidate"]
    with pytest.raises(EvaluationError, match=r"llama-8b LLM\.single_request: a round lacks the arm 'candidate'"):
        score(run)
    run.models[0].workloads = []
    with pytest.raises(EvaluationError, match="llama-8b: passed without a workload"):
        score(run)


def test_a_run_without_models_is_refused():
    with pytest.raises(EvaluationError, match="no model was evaluated"):
        score(make_run(models={}))


def test_digest_of_the_set_is_of_its_contents_alone():
    a, b = {"x": "1" * 64, "y": "2" * 64}, {"y": "2" * 64, "x": "1" * 64}
    digests = [set_digest(make_run(models={}, digests=d, candidates=n)) for d, n in ((a, "one"), (b, "two"))]
    assert digests[0] == digests[1] != set_digest(make_run(models={}, digests={"x": "1" * 64}))


def test_sets_without_candidates_are_told_apart_by_name():
    one, two = (set_digest(make_run(models={}, digests={}, candidates=n)) for n in ("one", "two"))
    assert one != two


def test_text_shows_the_three_beside_the_score_and_each_failure_with_its_reason():
    text = score(make_run(models=THREE, failed=("bge-m3",))).text()
    for words in (
        "score 0.000",
        "S 0.000",
        "C 0.500",
        "Cov 0.500",
        "S over passed 1.2",
        "argmax agreement",
        "llama-8b",
    ):
        assert words in text
