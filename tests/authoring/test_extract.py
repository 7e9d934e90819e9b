"""extract: every file equals the live module, runs alone, and a file that is wrong is found out."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fastkernels.authoring.check import _compared, check_imported, check_task
from fastkernels.authoring.extract import extract
from fastkernels.authoring.model import describe_model
from fastkernels.cli.main import app
from fastkernels.errors import EvaluationError
from fastkernels.patches.recognise import adapters_for, recognise
from tests.authoring.configs import MORE, PACKAGED, TINY, tiny, written

# What must be found in each, among other things: tasks by name, imported modules by class.
HOLDS = {
    "llama": {"embedding", "linear", "rms_norm", "silu", "attention_block", "gated_mlp", "decoder_layer"},
    "mixtral": {"rms_norm", "moe_router", "fused_experts", "shared_expert_moe", "MixtralDecoderLayer"},
    "gemma": {
        "gemma_rms_norm",
        "gelu",
        "attention_block",
        "gated_mlp",
        "decoder_layer",
        "Gemma2TextScaledWordEmbedding",
    },
    "whisper": {"encoder_layer", "attention_block", "Conv1d", "WhisperAttention", "WhisperDecoderLayer"},
    "vit": {"encoder_layer", "mlp", "layer_norm", "Conv2d", "ViTEmbeddings"},
}
# The same of further models, and what is told to be left out.
ALSO = {
    "clip": ({"encoder_layer", "CLIPVisionEmbeddings", "CLIPTextEmbeddings"}, {}),
    "llava": (
        {"decoder_layer", "attention_block", "encoder_layer", "CLIPVisionEmbeddings"},
        {"model.multi_modal_projector": "does not call it in this pass"},
    ),
    "gpt-oss": ({"GptOssExperts", "GptOssDecoderLayer"}, {}),
    "qwen3-next": ({"Qwen3NextGatedDeltaNet", "Qwen3NextAttention", "shared_expert_moe"}, {}),
    "deepseek-v3": ({"DeepseekV3Attention", "moe_router", "fused_experts", "gated_mlp"}, {}),
    "wav2vec2": (
        {"encoder_layer", "Conv1d", "Wav2Vec2FeatureProjection"},
        {
            "wav2vec2.encoder.pos_conv_embed": "changed it after its construction",
            "wav2vec2.encoder.pos_conv_embed.conv": "changed it after its construction",
        },
    ),
    "bart": ({"BartLearnedPositionalEmbedding", "encoder_layer"}, {}),
    "mamba": ({"MambaMixer", "MambaBlock", "rms_norm", "linear"}, {}),
}
SLOWER = sorted(ALSO.keys() - {"clip", "gpt-oss", "llava"})
# Runs each file as its own program, in a process that cannot import this library.
ALONE = """
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fastkernels":
            raise ImportError("a file on its own needs no fastkernels")
sys.meta_path.insert(0, Nothing())
files, sys.argv = sys.argv[1:], ["file"]
for file in files:
    runpy.run_path(file, run_name="__main__")
"""


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_file_of_a_tiny_model_equals_the_live_module(name, tmp_path):
    found = extract(tiny(name, tmp_path), tmp_path / "out", check=True)
    assert found.left_out == {} and found.unequal == ()
    assert {f.what for f in found.files} >= HOLDS[name]
    assert {f.level for f in found.files} == {1, 2, 3}
    for file in found.files:
        text = file.file.read_text()
        assert "import fastkernels" not in text and "from fastkernels" not in text
        from_transformers = file.kind == "imported" and not file.what.startswith("Conv")
        assert ("\nfrom transformers." in text) == from_transformers


@pytest.mark.parametrize(
    "name", ["clip", "gpt-oss", "llava", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOWER)]
)
def test_other_models_are_extracted_whole_or_what_is_left_out_is_told(name, tmp_path):
    holds, left_out = ALSO[name]
    found = extract(tiny(name, tmp_path), tmp_path / "out", check=True)
    assert found.unequal == () and {f.what for f in found.files} >= holds
    assert found.left_out.keys() == left_out.keys()
    assert all(words in found.left_out[path] for path, words in left_out.items())


def test_kinds_of_layers_that_the_config_s_class_derives_are_all_built(tmp_path):
    described = describe_model(tiny("qwen3-next", tmp_path))
    assert (described.layers, described.of_layers) == (4, 8)
    assert set(described.config.layer_types) == {"linear_attention", "full_attention"}


def test_a_list_with_an_item_a_layer_is_cut_with_the_layers(tmp_path):
    kinds = ["sliding_attention"] * 4 + ["full_attention"] * 4
    fields = TINY["llama"] | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    fields |= {"num_hidden_layers": 8, "layer_types": kinds, "head_dim": 8}
    described = describe_model(written(fields, tmp_path / "c.json"))
    assert described.layers == 5 and described.config.layer_types == kinds[:5]


def test_complex_outputs_are_compared_in_both_parts():
    got, want = torch.tensor([1 + 2j]), torch.tensor([1 - 2j])
    assert [e.l2 for e in _compared([got], [want])] != [0.0] and [e.l2 for e in _compared([got], [got])] == [0.0]


def test_a_file_that_says_its_draws_show_and_whose_do_not_is_unequal(tmp_path):
    config = tiny("bart", tmp_path)
    files = extract(config, tmp_path, levels=[1]).files
    found = next(f for f in files if f.what == "BartLearnedPositionalEmbedding")
    described = describe_model(config)
    module = described.model.get_submodule(found.paths[0])
    assert check_imported(found.file, module, described).equal
    text = found.file.read_text()
    assert "RANDOM = False" in text
    found.file.write_text(text.replace("RANDOM = False", "RANDOM = True"))
    assert "do not depend" in check_imported(found.file, module, described).why


def test_the_file_of_a_task_is_a_program_that_needs_torch_alone(tmp_path):
    files = [str(f.file) for f in extract(tiny("vit", tmp_path), tmp_path / "out").files if f.kind == "task"]
    ran = subprocess.run([sys.executable, "-c", ALONE, *files], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines().count("ok") == len(files)


def test_modules_with_equal_constants_are_one_file_and_others_are_not(tmp_path):
    found = extract(tiny("llama", tmp_path), tmp_path / "out", levels=[1])
    linears = {f.file.stem: len(f.paths) for f in found.files if f.what == "linear"}
    assert sum(linears.values()) == 2 * 7 + 1 and len(linears) == 5
    (norm,) = (f for f in found.files if f.what == "rms_norm")
    assert len(norm.paths) == 2 * 2 + 1
    assert "HIDDEN_SIZE = 32\nEPS = 1e-05\n" in norm.file.read_text()


@pytest.mark.parametrize(
    ("what", "level", "old", "new"),
    [
        ("rms_norm", 1, "x.to(compute_dtype(x))", "x.to(torch.bfloat16)"),  # another precision
        ("rms_norm", 1, "wide.pow(2).mean(-1, keepdim=True) + eps", "wide.pow(2).mean(-1, keepdim=True)"),  # no eps
        ("decoder_layer", 3, "return total + self.mlp(normed)", "return total + self.mlp(normed) * 1.0001"),
    ],
)
def test_a_file_whose_arithmetic_is_wrong_is_unequal(what, level, old, new, tmp_path):
    config = tiny("llama", tmp_path)
    (found,) = (f for f in extract(config, tmp_path / "out", levels=[level]).files if f.what == what)
    site = site_of(config, what)
    assert check_task(found.file, site).equal
    text = found.file.read_text()
    assert old in text
    found.file.write_text(text.replace(old, new))
    assert not check_task(found.file, site).equal


def test_an_imported_file_with_another_constant_is_unequal(tmp_path):
    config = tiny("mixtral", tmp_path)
    (found,) = (f for f in extract(config, tmp_path / "out", levels=[3]).files)
    described = describe_model(config)
    layer = described.model.get_submodule(found.paths[0])
    assert found.kind == "imported" and check_imported(found.file, layer, described).equal
    text = found.file.read_text()
    assert "'rms_norm_eps': 1e-05" in text
    found.file.write_text(text.replace("'rms_norm_eps': 1e-05", "'rms_norm_eps': 1e-03"))
    assert not check_imported(found.file, layer, described).equal


def site_of(config, what):
    model = describe_model(config).model
    return next(s for s in recognise(model, adapters_for(model)).sites if s.task.name == what)


def test_a_file_with_another_models_constants_is_refused(tmp_path):
    config = tiny("llama", tmp_path)
    (norm,) = (f for f in extract(config, tmp_path / "out", levels=[1]).files if f.what == "rms_norm")
    norm.file.write_text(norm.file.read_text().replace("EPS = 1e-05", "EPS = 1e-06"))
    with pytest.raises(EvaluationError, match="constants"):
        check_task(norm.file, site_of(config, "rms_norm"))


def test_a_folder_with_a_config_is_as_good_as_the_file_and_names_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "some-3.1-model"
    folder.mkdir()
    written(TINY["vit"], folder / "config.json")
    files = extract(str(folder), levels=[2], layers=1).files
    assert {str(f.file.parent) for f in files} == {"extracted/some-3.1-model/L2"}
    assert "in the model of some-3.1-model." in files[0].file.read_text()


def test_what_cannot_be_extracted_says_why(tmp_path):
    with pytest.raises(EvaluationError, match=r"no packaged config .*llama-3\.1-8b"):
        extract("nobody/knows-this", tmp_path)
    with pytest.raises(EvaluationError, match="level 4"):
        extract("llama-3.1-8b", tmp_path, levels=[4])
    with pytest.raises(EvaluationError, match="model_type"):
        extract(written({"hidden_size": 3}, tmp_path / "c.json"), tmp_path)


def test_the_command_prints_a_row_a_file_and_writes_them(tmp_path):
    arguments = ["extract", tiny("vit", tmp_path), "--out", str(tmp_path / "out"), "--level", "2", "--check"]
    ran = CliRunner().invoke(app, arguments, env={"COLUMNS": "140"})
    assert ran.exit_code == 0, ran.output
    told = " ".join(ran.stdout.split())  # the folder's name says where lines break
    assert "L2/mlp.py" in told and "equal" in told and "2 of 2 layers built" in told
    assert (tmp_path / "out" / "L2" / "mlp.py").is_file() and not (tmp_path / "out" / "L3").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_file_of_a_published_model_equals_the_live_module(name, tmp_path):
    found = extract(PACKAGED[name], tmp_path / "out", check=True)
    assert found.left_out == {} and found.unequal == ()
    assert {f.what for f in found.files} >= HOLDS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY | MORE))
def test_each_file_of_each_architecture_is_a_program_of_its_own(name, tmp_path):
    files = [str(f.file) for f in extract(tiny(name, tmp_path), tmp_path / "out").files]
    ran = subprocess.run([sys.executable, "-c", ALONE, *files], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines().count("ok") == len(files)


def test_extraction_is_the_same_text_each_time(tmp_path):
    config = tiny("vit", tmp_path)
    texts = [
        {f.file.name: f.file.read_text() for f in extract(config, tmp_path / out, levels=[2]).files}
        for out in ("one", "two")
    ]
    assert texts[0] == texts[1] and json.dumps(sorted(texts[0]))
