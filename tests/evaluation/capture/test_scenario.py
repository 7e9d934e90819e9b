"""Captures of scenarios, each entry in a process of its own."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.scenario import capture_scenario
from fastkernels.evaluation.capture.store import load_capture, load_captures

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
