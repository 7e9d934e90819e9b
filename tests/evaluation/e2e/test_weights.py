"""Models of an entry: the right class, the right values in every dtype, and published sizes."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, initialization

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.e2e.source import CHECKOUT, Weights, packaged_configs, read_config
from fastkernels.evaluation.e2e.weights import build, config_of, describe, parameters

LLAMA = CHECKOUT / "models" / "stdlib-llama"
PUBLISHED = {  # parameters, as counted from the published checkpoints
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "bge-m3": 567_754_752,
    "mistral-7b-v0.3": 7_248_023_552,
    "gemma-2-9b": 9_241_705_984,
    "gpt-oss-20b": 20_914_757_184,
    "vit-large-patch16-224": 304_326_632,
    "detr-resnet-50": 41_524_768,  # without the batch norms of the backbone, which are frozen there
    "segformer-b5-ade-640": 84_708_694,
    "whisper-large-v3": 1_543_490_560,
    "ms-marco-minilm-l12": 33_360_385,
    "patchtst-etth1": 614_240,  # counted here: its card gives no number
}
WORKLOAD = {
    "xlm-roberta": "Embedding.batch",
    "vit": "Classification.batch",
    "detr": "Detection.batch",
    "segformer": "Segmentation.batch",
    "whisper": "ASR.fixed_batch",
    "patchtst": "Trajectory.batch",
    "bert": "Recommendation.rank",
}
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 32,
    "num_experts_per_tok": 2, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_source_positions": 50,
    "max_target_positions": 32, "num_mel_bins": 8, "ffn_dim": 96, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "begin_suppress_tokens": [], "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 1, 1, 1], "decoder_hidden_size": 32, "image_size": 32, "num_labels": 5, "num_queries": 7,
}  # fmt: skip


def small(name):
    """A packaged config with the same structure and little in it."""
    fields = {key: SMALL.get(key, value) for key, value in read_config(name).items()}
    if fields["model_type"] == "segformer":
        fields["num_attention_heads"] = [1, 2, 5, 8]
    if "layer_types" in fields:
        fields["layer_types"] = fields["layer_types"][:2]
    if "backbone_config" in fields:
        fields["backbone_config"] |= {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
    return fields


def entry(config, *, dtype="bfloat16", seed=3, **weights):
    model_type = config["model_type"] if isinstance(config, dict) else read_config(config)["model_type"]
    workload = WORKLOAD.get(model_type, "LLM.mixed")
    source = Weights(config=config, seed=seed, **weights)
    return Entry(model="a/b", tp=1, dtype=dtype, workloads=(workload,), weights=source)


def loaded(path, *, dtype="float32", workload="LLM.mixed"):
    return Entry(model="a/b", tp=1, dtype=dtype, workloads=(workload,), weights=Weights(path=str(path)))


@pytest.mark.parametrize("name", packaged_configs())
def test_a_packaged_config_builds_what_was_published(name):
    config = config_of(Weights(config=name))
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])._from_config(config, dtype=torch.bfloat16)
    assert parameters(model) == PUBLISHED[name]


def test_layers_cut_a_config():
    with torch.device("meta"):
        model = transformers.Qwen3MoeForCausalLM(config_of(Weights(config="qwen3-30b-a3b", layers=16)))
    assert len(model.model.layers) == 16
    assert parameters(model) == pytest.approx(10.6e9, rel=0.01)
    gpt = config_of(Weights(config="gpt-oss-20b", layers=3))
    assert gpt.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert config_of(Weights(config="whisper-large-v3", layers=2)).decoder_layers == 2
    nested = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 4}}
    assert config_of(Weights(config=nested, layers=2)).text_config.num_hidden_layers == 2
    assert nested["text_config"]["num_hidden_layers"] == 4


@pytest.mark.parametrize("fields", [{"model_type": "llama", "num_hidden_layers": 2}, {"model_type": "resnet"}])
def test_more_layers_than_there_are_is_an_error(fields):
    with pytest.raises(EvaluationError, match="layers 3"):
        config_of(Weights(config=fields, layers=3))


@pytest.mark.parametrize("name", packaged_configs())
def test_a_wider_model_holds_the_entrys_values(name):
    made = entry(small(name))
    narrow, wide = build(made, device="cpu"), build(made, device="cpu", dtype=torch.float64)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    assert not narrow.training
    for (key, a), b in zip(narrow.named_parameters(), wide.parameters(), strict=True):
        assert torch.equal(a.double(), b), key
    float32 = build(entry(small(name), dtype="float32"), device="cpu")
    assert any(not torch.equal(a.float(), b) for a, b in zip(narrow.parameters(), float32.parameters(), strict=True))


@pytest.mark.parametrize("name", packaged_configs())
def test_initialisation_is_transformers_own_in_all_but_the_draw(name):
    made = entry(small(name), dtype="float32")
    ours, config = build(made, device="cpu"), AutoConfig.for_model(**small(name))
    theirs = type(ours)._from_config(config, dtype=torch.float32).eval()
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    for (key, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), key
    for (key, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == other
        if b.numel() > 400 or b.std() == 0:  # ties: parameters() names a tied one once in both
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.25, abs=1e-6), key
            assert a.mean().item() == pytest.approx(b.mean().item(), abs=0.2 * b.std().item() + 1e-6), key


def test_the_seed_decides_the_values_and_the_process_does_not_feel_it():
    config, before, table = small("llama-3.1-8b"), torch.get_rng_state(), dict(initialization.TORCH_INIT_FUNCTIONS)
    first, again, other = (build(entry(config, seed=s), device="cpu").lm_head.weight for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert table == initialization.TORCH_INIT_FUNCTIONS


def test_no_two_matrices_of_a_model_are_alike():
    model = build(entry(small("llama-3.1-8b")), device="cpu")
    first, second = (layer.self_attn.q_proj.weight for layer in model.model.layers)
    assert not torch.equal(first, second)


def test_tied_weights_are_tied():
    model = build(entry(small("gemma-2-9b")), device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_built_in_inference_mode_has_ordinary_parameters():
    with torch.inference_mode():
        models = build(entry(small("bge-m3")), device="cpu"), build(loaded(LLAMA), device="cpu")
    assert not any(p.is_inference() for model in models for p in model.parameters())


def test_float16_keeps_wide_what_transformers_keeps_wide():
    model = build(entry(small("gpt-oss-20b"), dtype="float16"), device="cpu")
    assert model.model.norm.weight.dtype == torch.float32
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.float16


def test_an_encoder_is_loaded_without_a_head(tmp_path):
    config = transformers.BertConfig(**{k: v for k, v in SMALL.items() if k in ("hidden_size", "vocab_size")})
    config.num_hidden_layers, config.num_attention_heads, config.architectures = 1, 4, ["BertForMaskedLM"]
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    assert type(build(loaded(tmp_path, workload="Embedding.batch"), device="cpu")).__name__ == "BertModel"


def test_a_class_that_transformers_has_not_falls_back_to_the_familys():
    config = small("ms-marco-minilm-l12") | {"architectures": ["SomebodysOwnBert"]}
    assert type(build(entry(config), device="cpu")).__name__ == "BertForSequenceClassification"
    with pytest.raises(EvaluationError, match="no AutoModelForCausalLM for resnet"):
        build(entry({"model_type": "resnet"}), device="cpu")


def test_real_weights_are_rounded_to_the_entrys_dtype_then_widened(tmp_path):
    (tmp_path / "config.json").write_bytes((LLAMA / "config.json").read_bytes())
    odd = {key: value.float() + 1e-3 for key, value in load_file(LLAMA / "model.safetensors").items()}
    save_file(odd, tmp_path / "model.safetensors", metadata={"format": "pt"})
    made = loaded(tmp_path, dtype="bfloat16")
    narrow, wide = build(made, device="cpu"), build(made, device="cpu", dtype=torch.float32)
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(narrow.get_parameter(key), odd[key].bfloat16())
    assert torch.equal(wide.get_parameter(key), odd[key].bfloat16().float()) and wide.dtype == torch.float32
    assert wide.model.rotary_emb.inv_freq.dtype == narrow.model.rotary_emb.inv_freq.dtype == torch.float32
    computed = transformers.LlamaForCausalLM(wide.config).model.rotary_emb.inv_freq
    for model in (narrow, wide):  # a table that is computed is not rounded to the weights' dtype
        assert torch.equal(model.model.rotary_emb.inv_freq, computed)
    assert narrow.name_or_path == str(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_an_error(tmp_path):
    (tmp_path / "config.json").write_bytes((LLAMA / "config.json").read_bytes())
    kept = {k: v for k, v in load_file(LLAMA / "model.safetensors").items() if "layers.3.mlp.up" not in k}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"no weights for 1 parameters of LlamaForCausalLM, such as .*layers\.3"):
        build(loaded(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 7, "vocab_size": 8}, "hidden"),
    ],
)
def test_a_config_that_builds_nothing_is_an_error(config, said):
    with pytest.raises(EvaluationError, match=said):
        build(entry(config), device="cpu")


def test_what_is_unsupported_is_not_built():
    made = Entry(model="a/b", tp=2, dtype="float32", workloads=("LLM.mixed",), weights=Weights(path=str(LLAMA)))
    with pytest.raises(EvaluationError, match="tp 2"):
        build(made, device="cpu")


def test_a_report_says_where_weights_came_from():
    assert describe(entry("bge-m3")) == "config bge-m3, random with seed 3"
    assert describe(entry("whisper-large-v3", layers=4)).startswith("config whisper-large-v3, 4 of 32+32 layers")
    assert describe(entry({"model_type": "llama"})) == "config of the scenario (llama), random with seed 3"
    assert describe(loaded(LLAMA)) == str(LLAMA)
