"""Captures of scenarios, each entry in a process of its own."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.capture import capture as verb
from fastkernels.evaluation.capture.preflight import options_of
from fastkernels.evaluation.capture.record import Capture
from fastkernels.evaluation.capture.scenario import _write_public, capture_scenario
from fastkernels.evaluation.capture.store import load_capture, load_captures
from fastkernels.evaluation.e2e.scenario import Entry

CONFIG = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture
def scenario(tmp_path):
    entry = {
        "model": "tiny-mixtral",
        "tp": 1,
        "dtype": "float32",
        "workloads": ["LLM.mixed"],
        "sizes": {"LLM.mixed": {"batch": 2, "requests": 4, "input_tokens": [8, 12], "output_tokens": 3}},
        "weights": {"config": CONFIG},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps({"scenarios": [entry]}))  # JSON is YAML
    return file


@pytest.mark.slow
def test_the_command_captures_every_workload_and_writes_both_formats(scenario, tmp_path):
    import typer

    from fastkernels.cli.capture import capture

    app = typer.Typer()
    app.command()(capture)
    ran = CliRunner().invoke(
        app, [str(scenario), "--out", str(tmp_path / "out"), "--public", str(tmp_path / "public"), "--threads", "1"]
    )
    assert ran.exit_code == 0, ran.output
    found = load_capture(tmp_path / "out" / "00-tiny-mixtral" / "LLM.mixed")
    assert found.root_calls == {"prefill": 2, "decode": 4}  # two batches of three tokens
    assert {r.path for r in found.routing} == {"model.layers.0.mlp.experts"}
    assert found.graph.passed is not None
    assert not any(d.startswith(("rms_norm", "linear", "fused_experts")) for d in found.graph.differences)
    (file,) = (tmp_path / "public").glob("*.json")
    assert file.name == "tiny-mixtral_tp1_float32_LLM.mixed_req4_seqsauto_eager.json"
    assert load_capture(file).of("rms_norm")
    assert [c.model for c in load_captures(tmp_path / "out")] == ["tiny-mixtral"]
    assert "Captured / uniform" in ran.output


def test_a_scenario_without_a_matching_model_is_refused(scenario, tmp_path):
    with pytest.raises(EvaluationError, match="matches none"):
        capture_scenario(scenario, only=["other*"], out=tmp_path / "out")


def written(folder, name, **fields):
    """A scenario file of one entry with other fields."""
    entry = json.loads((folder / "tiny.yaml").read_text())["scenarios"][0] | fields
    file = folder / name
    file.write_text(json.dumps({"scenarios": [{k: v for k, v in entry.items() if v is not None}]}))
    return file


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"weights": None, "model": "/no/such/model"}, "no such model"),
        ({"engine": "sglang", "sizes": None}, "not installed"),
        ({"engine": "other"}, "not implemented"),
        ({"no_such_key": 1}, "unknown key"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_loaded(scenario, tmp_path, fields, told):
    both = written(tmp_path, "bad.yaml", **fields)
    good, bad = (json.loads(file.read_text())["scenarios"][0] for file in (scenario, both))
    both.write_text(json.dumps({"scenarios": [good, bad]}))  # the first could run
    seen = []
    with pytest.raises(EvaluationError, match=told):
        capture_scenario(both, out=tmp_path / "out", device="cpu", on_progress=seen.append)
    assert seen == []
    assert not (tmp_path / "out").exists()


def test_a_folder_with_captures_is_not_used_again(scenario, tmp_path):
    former = tmp_path / "out" / "00-tiny-mixtral" / "LLM.mixed" / "capture.json"
    former.parent.mkdir(parents=True)
    former.write_text("{}")
    with pytest.raises(EvaluationError, match="lies there already"):
        capture_scenario(scenario, out=tmp_path / "out", device="cpu")
    assert former.read_text() == "{}"


@pytest.mark.slow
def test_a_scenario_is_called_as_asked(scenario, tmp_path):
    (found,) = verb(scenario, name="mine", out=tmp_path / "out")
    assert found.model == load_capture(found.folder).model == "mine"


def test_a_scenario_has_its_own_workloads_and_a_server_is_none(scenario):
    with pytest.raises(EvaluationError, match="names of their own"):
        verb(scenario, workload="mine")
    with pytest.raises(EvaluationError, match="cannot be asked from here"):
        verb("http://localhost:8000")


def test_two_engines_of_one_model_have_files_of_their_own(tmp_path):
    def captured(engine, **more):
        entry = Entry(model="a/b", tp=1, dtype="float32", workloads=("LLM.mixed",), engine=engine)
        told = {"model": "a/b", "cls": "B", "engine": engine, "dtype": "float32", "device": "cpu", "sites": []}
        return entry, Capture(workload="LLM.mixed", captured_at="", **told, **more)

    given = [captured("hf"), captured("vllm"), captured("vllm"), captured("vllm", rank=1)]
    _write_public(given, tmp_path)
    stem = "a__b_tp1_float32_LLM.mixed_req0_seqsauto"
    names = {f"{stem}_eager.json": "hf", f"{stem}_vllm_eager.json": "vllm", f"{stem}_vllm2_eager.json": "vllm"}
    assert {file.name: load_capture(file).engine for file in tmp_path.iterdir()} == names
    with pytest.raises(EvaluationError, match="left as it is"):
        _write_public(given, tmp_path)


def test_options_of_an_engine_that_is_not_here_are_not_judged():
    assert options_of("no_such_engine_at_all") == frozenset()
