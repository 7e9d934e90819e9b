"""fastkernels plan: on real folders with tiny configs, no weights anywhere."""

import json

import pytest
from transformers import AutoConfig, BertConfig, LlamaConfig
from typer.testing import CliRunner

from fastkernels import Report
from fastkernels.cli.main import app

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}


@pytest.fixture
def llama(tmp_path):
    config = LlamaConfig(**SMALL, num_hidden_layers=3, architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


@pytest.fixture
def bert(tmp_path):
    BertConfig(**SMALL, num_hidden_layers=2, architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def run(*arguments, columns=100):
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": str(columns)})


def report(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return Report.model_validate_json(result.stdout)


def test_json_is_the_report_and_nothing_else(llama):
    parsed = report(llama)
    assert parsed.model == "LlamaForCausalLM"
    assert parsed.dry_run
    assert {"model.norm", "model.layers.2.mlp"} <= {s.path for s in parsed.applied}


def test_class_is_the_one_the_config_names(bert):
    assert report(bert).model == "BertModel"


def test_class_is_found_without_architectures(tmp_path, llama):
    config = json.loads((tmp_path / "llama/config.json").read_text())
    del config["architectures"]
    (tmp_path / "llama/config.json").write_text(json.dumps(config))
    assert report(llama).model == "LlamaForCausalLM"


def test_a_candidate_folder_is_planned_with(llama, tmp_path):
    folder = tmp_path / "mine"
    (folder / "L1").mkdir(parents=True)
    (folder / "L1/rms_norm.py").write_text(
        "from fastkernels.tasks.L1 import rms_norm\nclass RMSNorm(rms_norm.RMSNorm):\n    pass\n"
    )
    (folder / "L1/no_such_task.py").write_text("")
    parsed = report(llama, "--candidates", str(folder))
    assert {s.task for s in parsed.applied} == {"rms_norm"}
    assert {c.label: c.state for c in parsed.candidates} == {
        "L1/rms_norm.py": "applied",
        "L1/no_such_task.py": "unmatched",
    }


def test_select_narrows_and_repeats(llama):
    parsed = report(llama, "--select", "model.layers.0.mlp", "--select", "model.norm:*", "--candidates", "shipped")
    assert sorted(s.path for s in parsed.applied) == ["model.layers.0.mlp", "model.norm"]


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_and_fold_the_layers(llama, columns):
    result = run(llama, columns=columns)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert "model.layers.*.mlp" in result.stdout
    assert "model.layers.1.mlp" not in result.stdout
    assert "L2/gated_mlp.py" in result.stdout


def test_sites_shows_every_path(llama):
    out = run(llama, "--sites", columns=120).stdout
    assert all(f"model.layers.{i}.mlp" in out for i in range(3))


def test_partial_selection_shows_which_layers(llama):
    out = run(llama, "--select", "model.layers.[01].mlp", "--candidates", "shipped", columns=120).stdout
    assert "model.layers.[0-1].mlp" in out
    assert "model.layers.[2].mlp" in out


def assert_one_line(result, *fragments):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in result.stderr


def test_unknown_folder():
    assert_one_line(run("./nowhere"), "fastkernels plan: ./nowhere is not a folder", "OWNER/NAME")


def test_folder_without_config(tmp_path):
    assert_one_line(run(str(tmp_path)), "holds no config.json")


def test_config_that_is_not_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert_one_line(run(str(tmp_path)), "cannot be read")


def test_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody_knows"}')
    assert_one_line(run(str(tmp_path)), "nobody_knows")


def test_config_no_model_is_built_from(tmp_path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": -1, "hidden_size": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_one_line(run(str(tmp_path)), "config.json")


def test_hub_out_of_reach_says_how_to_go_on_offline(monkeypatch):
    def unreachable(name, **kwargs):
        raise OSError("no route to the hub\nand a second line")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    assert_one_line(run("owner/model"), "owner/model", "no route to the hub)", "fastkernels plan ./FOLDER")


def test_bad_candidates(llama, tmp_path):
    assert_one_line(run(llama, "--candidates", str(tmp_path / "none")), "is not a folder")


def test_select_that_matches_nothing(llama):
    assert_one_line(run(llama, "--select", "decoder.*"), "matches none")
