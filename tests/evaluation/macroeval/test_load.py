"""Loading results: by file or folder; what is no result is named."""

import json

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.macroeval.load import load_run
from tests.evaluation.runs import make_run


@pytest.fixture
def run():
    return make_run(models={"bge-m3": "embedding"})


def test_a_file_and_its_folder_give_the_run_as_it_was_written(tmp_path, run):
    (tmp_path / "result.json").write_text(run.model_dump_json())
    assert load_run(tmp_path) == load_run(tmp_path / "result.json") == run


def test_a_missing_result_is_named_and_for_a_folder_says_to_resume(tmp_path):
    with pytest.raises(EvaluationError, match=r"result\.json: no such file. .*resume"):
        load_run(tmp_path)
    with pytest.raises(EvaluationError, match=r"other\.json: no such file\.$"):
        load_run(tmp_path / "other.json")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "null"])
def test_a_foreign_file_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"x\.json is not a result of fastkernels eval"):
        load_run(tmp_path / "x.json")


def test_a_broken_field_is_named(tmp_path, run):
    content = json.loads(run.model_dump_json())
    content["models"][0]["workloads"][0]["rounds"][2]["candidate"]["seconds"] = "fast"
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=r"models\.0\.workloads\.0\.rounds\.2\.candidate\.seconds"):
        load_run(tmp_path)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match=r"x\.json cannot be read"):
        load_run(tmp_path / "x.json")
