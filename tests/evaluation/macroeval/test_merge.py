"""Merging runs: one a candidate set; what must not be mixed is refused by name, and what is forced is said."""

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.macroeval.merge import merge
from fastkernels.evaluation.macroeval.score import score
from tests.evaluation.runs import VERSIONS, make_run

LLAMA, QWEN, BGE = {"llama-8b": "llm"}, {"qwen3-moe": "llm"}, {"bge-m3": "embedding"}
OTHER = {"rms_norm": "9" * 64}


def names(run):
    return [m.model for m in run.models]


def test_runs_of_one_set_from_two_machines_become_one():
    one = make_run(models=LLAMA, date="2026-11-20T09:00:00+00:00", host="a")
    two = make_run(models=QWEN | BGE, seed=1, host="b")
    [merged] = merge([one, two])
    assert sorted(names(merged)) == ["bge-m3", "llama-8b", "qwen3-moe"]
    assert one.id in merged.settings["merged"] and two.id in merged.settings["merged"]
    assert (merged.machine.count, merged.machine.host, merged.date) == (2, "a, b", two.date)
    assert merged.command.splitlines() == [one.command, two.command]
    assert "merged from 2 runs" in score(merged).text()


def test_score_of_the_merged_is_that_of_one_run_with_all_models():
    whole = make_run(models=LLAMA | BGE)
    parts = [whole.model_copy(update={"id": str(i), "models": [m]}) for i, m in enumerate(whole.models)]
    [merged] = merge(parts)
    assert score(merged).score == score(whole).score


def test_different_sets_stay_apart_in_their_order():
    one, two = make_run(models=LLAMA), make_run(models=LLAMA, digests=OTHER, seed=1)
    assert merge([two, one]) == [two, one]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": 2}, r"protocol \(1 and 2\)"),
        ({"device": "NVIDIA H100"}, r"device \(NVIDIA H200 and NVIDIA H100\)"),
        ({"scenario": "full"}, r"scenario \(default and full\)"),
        ({"settings": {"rounds": "12", "seed": "0", "scenario digest": "ab"}}, r"scenario \(default and ab\)"),
        *(({"versions": VERSIONS | {n: "9"}}, rf"{n} \(.* and 9\)") for n in ("torch", "transformers", "triton")),
        ({"versions": {n: v for n, v in VERSIONS.items() if n != "fastkernels"}}, r"fastkernels \(0.1.0 and None\)"),
    ],
)
@pytest.mark.parametrize("digests", [None, OTHER], ids=["one set", "two sets"])
def test_incompatible_runs_are_refused_by_name_and_mixed_only_by_force(change, says, digests):
    one = make_run(models=LLAMA)
    two = make_run(models=QWEN, seed=1, **change, **({"digests": digests} if digests else {}))
    with pytest.raises(EvaluationError, match=rf"{one.id[:12]}.* and {two.id[:9]}.* differ in {says}.*--force"):
        merge([one, two])
    for run in merge([one, two], force=True):
        assert "differ in" in run.settings["forced"]


def test_settings_matter_within_one_set_only():
    one, two = make_run(models=LLAMA), make_run(models=QWEN, settings={"rounds": "12", "lowering": "opaque"}, seed=1)
    with pytest.raises(EvaluationError, match=r"setting lowering \(None and opaque\), setting seed \(0 and None\)"):
        merge([one, two])
    assert len(merge([one, two.model_copy(update={"digests": OTHER})])) == 2


def test_runs_whose_folders_bear_one_name_are_two_runs():
    one, two = (make_run(models=m, host=h).model_copy(update={"id": "run"}) for m, h in ((LLAMA, "a"), (QWEN, "b")))
    assert len(merge([one, two])[0].models) == 2
    two.machine.device = "NVIDIA H100"
    with pytest.raises(EvaluationError, match=r"run \(.*, host a\) and run \(.*, host b\) differ"):
        merge([one, two])


def test_all_fields_that_differ_are_named():
    with pytest.raises(EvaluationError, match=r"device .*, torch "):
        merge([make_run(models=LLAMA), make_run(models=QWEN, device="A", versions=VERSIONS | {"torch": "9"}, seed=1)])


def test_versions_that_do_not_matter_are_no_obstacle():
    one, two = make_run(models=LLAMA), make_run(models=QWEN, versions=VERSIONS | {"python": "3.11.7"}, seed=1)
    assert merge([one, two])[0].machine.versions["python"] == "3.12.3, 3.11.7"


def test_a_model_evaluated_twice_is_refused_and_by_force_the_newer_counts():
    old = make_run(models=LLAMA | BGE, date="2026-11-19T10:00:00+00:00", speedup=1.5)
    new = make_run(models=LLAMA, seed=1, failed=("llama-8b",))
    with pytest.raises(EvaluationError, match=r"llama-8b \(bfloat16, tp 1\) is in run .*--force: the newer counts"):
        merge([old, new])
    for runs in ([old, new], [new, old]):
        [merged] = merge(runs, force=True)
        assert sorted((m.model, m.passed) for m in merged.models) == [("bge-m3", True), ("llama-8b", False)]
        assert f"the newer, of {new.date}, counts" in merged.settings["forced"]


def test_another_dtype_or_width_is_another_model():
    one, two = make_run(models=LLAMA), make_run(models=LLAMA, seed=1)
    two.models[0].tp = 2
    assert len(merge([one, two])[0].models) == 2


def test_a_model_that_one_scenario_holds_twice_is_kept_twice():
    run, other = make_run(models=LLAMA), make_run(models=QWEN, seed=1)
    run.models.append(run.models[0].model_copy(deep=True))
    assert len(merge([run, other])[0].models) == 3


def test_a_run_given_twice_is_one_run():
    run = make_run(models=LLAMA)
    assert merge([run, run.model_copy(deep=True)]) == [run]


def test_merging_nothing_is_refused():
    with pytest.raises(EvaluationError, match="no runs"):
        merge([])
