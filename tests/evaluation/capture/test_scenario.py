"""Captures of scenarios, each entry in a process of its own."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fastkernels.cli.main import app
from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.capture import capture as verb
from fastkernels.evaluation.capture.preflight import options_of
from fastkernels.evaluation.capture.record import Capture
from fastkernels.evaluation.capture.scenario import _write_public, capture_scenario, failure
from fastkernels.evaluation.capture.store import load_capture, load_captures, value_of
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


def ran(*arguments):
    """What ``fastkernels capture`` prints."""
    done = CliRunner().invoke(app, ["capture", *map(str, arguments), "--device", "cpu", "--threads", "1"])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_captures_every_workload_and_writes_both_formats(scenario, tmp_path):
    out, public = tmp_path / "out", tmp_path / "public"
    told = ran(scenario, "--values", "sampled", "--prompts", "--no-graphs", "--out", out, "--public", public)
    found = load_capture(out / "00-tiny-mixtral" / "LLM.mixed")
    assert found.root_calls == {"prefill": 2, "decode": 4}  # two batches of three tokens
    assert {r.path for r in found.routing} == {"model.layers.0.mlp.experts"}
    sample = next(s for s in found.samples if s.task == "embedding" and s.phase == "decode")
    assert found.prompts and value_of(found, sample.values["ids"]).shape == (2, 1)
    (file,) = public.glob("*.json")
    assert file.name == "tiny-mixtral_tp1_float32_LLM.mixed_req4_seqsauto_eager.json"
    assert load_capture(file).of("rms_norm")
    assert [c.model for c in load_captures(out)] == ["tiny-mixtral"]
    assert "Captured / uniform" in told


@pytest.mark.slow
def test_the_command_compares_with_what_graphs_see(scenario, tmp_path):
    ran(scenario, "--out", tmp_path / "out")
    found = load_capture(tmp_path / "out" / "00-tiny-mixtral" / "LLM.mixed")
    assert found.root_calls == {"prefill": 2, "decode": 4} and found.graph.passed is not None
    assert not any(d.startswith(("rms_norm", "linear", "fused_experts")) for d in found.graph.differences)


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


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        (
            "Traceback (most recent call last):\n[rank0]: RuntimeError: head_dim=8 is not supported\n[rank0]:W1 bye\n",
            -9,
            ["ended by SIGKILL", "its last error: [rank0]: RuntimeError: head_dim=8 is not supported. All of it is in"],
        ),
        ("torch.OutOfMemoryError: 3 GiB\nlater\n", 1, ["exit status 1", "torch.OutOfMemoryError: 3 GiB. All"]),
        ("loading\nstill loading\n", None, ["no end within 5 s", "it ends with: loading\nstill loading. That"]),
    ],
)
def test_a_process_that_fails_is_told_by_the_last_error_of_its_log(tmp_path, log, code, told):
    file = tmp_path / "capture.log"
    file.write_text(log)
    message = failure("capture", file, code, 5.0)
    assert all(words in message for words in [*told, str(file), "--only"])


@pytest.mark.slow
def test_an_entry_whose_process_fails_says_why_and_keeps_its_log(scenario, tmp_path):
    sizes = {"LLM.mixed": {"batch": 2, "requests": 2, "input_tokens": [8], "output_tokens": 2}}
    broken = written(tmp_path, "broken.yaml", weights={"config": CONFIG | {"num_attention_heads": 5}}, sizes=sizes)
    with pytest.raises(
        EvaluationError, match=r"tiny-mixtral: the capture process failed .* error: .*Error: "
    ) as raised:
        capture_scenario(broken, out=tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "00-tiny-mixtral" / "capture.log").is_file() and "\n" not in str(raised.value)


def test_options_of_an_engine_that_is_not_here_are_not_judged():
    assert options_of("no_such_engine_at_all") == frozenset()
