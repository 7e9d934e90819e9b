"""What cannot be run is a 0 with its reason, and what is written wrong is an error before anything is run."""

from __future__ import annotations

import pytest

import fastkernels
from fastkernels.errors import EvaluationError
from tests.evaluation.e2e.tiny_scenario import CANDIDATES, scenario_file

ENTRY = "scenarios:\n  - {model: some/model, tp: %d, dtype: bfloat16, workloads: [%s]}\n"


@pytest.mark.parametrize(
    ("tp", "workload", "why"),
    [(2, "LLM.mixed", "tp 2: the hf engine runs on one device"), (1, "Robot.grasp", "there is no family 'Robot'")],
)
def test_an_entry_that_cannot_run_here_is_a_zero_with_its_reason(tmp_path, tp, workload, why):
    file = tmp_path / "s.yaml"
    file.write_text(ENTRY % (tp, workload))
    (model,) = fastkernels.evaluate(file, CANDIDATES / "right", out=tmp_path / "run", device="cpu").models
    assert (model.valid, model.passed, model.score) == (False, False, 0.0)
    assert why in model.reason


def test_an_unknown_workload_of_a_family_ends_the_run_before_it_starts(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(ENTRY % (1, "LLM.none"))
    with pytest.raises(EvaluationError, match=r"there is no workload LLM\.none; the family has"):
        fastkernels.evaluate(file, CANDIDATES / "right", out=tmp_path / "run", device="cpu")


def test_a_folder_is_continued_only_as_the_same_run(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(ENTRY % (2, "LLM.mixed"))
    out = tmp_path / "run"
    first = fastkernels.evaluate(file, CANDIDATES / "right", out=out, device="cpu")
    assert fastkernels.evaluate(file, CANDIDATES / "right", out=out, device="cpu").date == first.date
    with pytest.raises(EvaluationError, match=r"holds a run with another candidates .* --out"):
        fastkernels.evaluate(file, "shipped", out=out, device="cpu")


def test_candidates_that_no_process_could_be_given_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="Give a folder with L1"):
        fastkernels.evaluate(scenario_file(tmp_path), [object], out=tmp_path / "run", device="cpu")


def test_only_that_matches_nothing_names_what_there_is(tmp_path):
    with pytest.raises(EvaluationError, match="--only other matches none of its models: tiny-llama"):
        fastkernels.evaluate(scenario_file(tmp_path), "shipped", out=tmp_path / "run", device="cpu", only=["other"])


def test_models_that_earlier_calls_with_only_left_stay_in_the_result(tmp_path):
    file, out = tmp_path / "s.yaml", tmp_path / "run"
    second = ENTRY.partition("\n")[2].replace("some/model", "other/model")
    file.write_text(ENTRY % (2, "LLM.mixed") + second % (2, "LLM.mixed"))
    fastkernels.evaluate(file, "shipped", out=out, device="cpu", only=["some/*"])
    found = fastkernels.evaluate(file, "shipped", out=out, device="cpu", only=["other/*"])
    assert [m.model for m in found.models] == ["some/model", "other/model"]
