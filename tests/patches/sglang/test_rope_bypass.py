"""Ropes that SGLang asks for more than the task does, by its own classes and held against its own decision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

import fastkernels
from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang import model_code, rope_bypass, running
from fastkernels.patches.sglang.bypass import walked_around
from tests.patches.sglang.layers import HEAD, Model, holding, reasons, rope

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
ROPE = "model.layers.0.self_attn.rotary_emb"
WRITES = "enable_fused_set_kv_buffer"


# A rope that also writes the cache.


@pytest.mark.parametrize(
    ("engine", "fits", "writes"),
    [
        ("qwen3_moe:bfloat16", True, True),
        ("qwen3_moe:bfloat16", False, False),
        ("qwen3_moe", True, False),
        ("llama:bfloat16", True, False),
        ("qwen3:bfloat16", True, False),
    ],
    indirect=["engine"],
)
def test_a_rope_is_gated_exactly_where_the_engine_asks_it_to_write_the_cache(engine, fits, writes, cuda, monkeypatch):
    """The engine runs as on CUDA, and its pool says what it is asked; that request is noted, and not carried out."""
    from sglang.srt.models import utils

    monkeypatch.setattr(utils, "_is_cuda", True)
    monkeypatch.setattr(utils, "can_use_fused_inplace_qknorm", lambda *args: False)  # there is no such kernel here
    if not fits:
        for layer in engine.model.model.layers:
            monkeypatch.setitem(vars(layer.self_attn), "compatible_with_fused_kv_buffer", False)
    planned = fastkernels.plan(engine.model, "reference", select=lambda site: site.task.name == "rotary_emb").sites
    site = next(s for s in planned if s.task == "rotary_emb")
    asked = []

    def note(module, args, kwargs):
        asked.append(kwargs.get("fused_set_kv_buffer_arg") is not None)
        return args, kwargs | ({"fused_set_kv_buffer_arg": None} if asked[-1] else {})

    hook = engine.model.get_submodule(ROPE).register_forward_pre_hook(note, with_kwargs=True)
    try:
        engine.generate()
    finally:
        hook.remove()
    assert set(asked) == {writes}
    assert (site.state, WRITES in site.reason) == (("gated", True) if writes else ("applied", False))


@pytest.mark.parametrize("engine", ["qwen3_moe:bfloat16"], indirect=True)
def test_a_rope_that_writes_no_cache_off_cuda_is_a_site(engine):
    planned = fastkernels.plan(engine.model, "reference", select=lambda site: site.task.name == "rotary_emb").sites
    assert [s.state for s in planned if s.task == "rotary_emb"] == ["applied"]


WRITERS = (
    "qwen3_moe:Qwen3MoeAttention",
    "gpt_oss:GptOssAttention",
    "bailing_moe:BailingMoEAttention",
    "llada2:LLaDA2MoeAttention",
    "sdar:SDARAttention",
    "sdar_moe:SDARMoeAttention",
    "mellum:MellumAttention",
)
TURNERS = (
    "llama:LlamaAttention",
    "qwen2:Qwen2Attention",
    "qwen2_moe:Qwen2MoeAttention",
    "qwen3:Qwen3Attention",
    "mixtral:MixtralAttention",
    "glm4:Glm4Attention",
    "glm4_moe:Glm4MoeAttention",
    "gemma2:Gemma2Attention",
    "apertus:ApertusAttention",
    "exaone4:Exaone4Attention",
    "minicpm3:MiniCPM3AttentionMLA",
    "step3p5:Step3p5Attention",
    "gemma4_causal:Gemma4Attention",  # imports what builds the argument, and never gives it
)


@pytest.mark.parametrize("name", WRITERS)
def test_classes_that_give_the_rope_a_cache_are_known_by_their_code(name, cuda):
    assert WRITES in reasons(holding(name, {"rotary_emb": rope()}))["rotary_emb"]


@pytest.mark.parametrize("name", TURNERS)
def test_classes_that_only_turn_keep_their_rope(name, cuda):
    assert reasons(holding(name, {"rotary_emb": rope()})) == {"rotary_emb": ""}


@pytest.mark.parametrize("name", ["bailing_moe:BailingMoEAttention", "llada2:LLaDA2MoeAttention"])
def test_a_rope_of_a_part_of_each_head_does_not_write(name, cuda):
    assert reasons(holding(name, {"rotary_emb": rope(HEAD // 2)})) == {"rotary_emb": ""}


def test_a_rope_of_images_axes_does_not_write(cuda):
    own = {"compatible_with_fused_kv_buffer": False}
    assert reasons(holding(WRITERS[0], {"rotary_emb": rope()}, **own)) == {"rotary_emb": ""}


@pytest.mark.parametrize(("disabled", "gated"), [(False, False), (True, True)])
def test_a_cache_with_windows_of_its_own_is_not_written_by_the_rope(disabled, gated, cuda, monkeypatch):
    """The engine's own list of such models decides."""
    settings = {("schedule", "disable_hybrid_swa_memory"): disabled}
    monkeypatch.setattr(rope_bypass, "resolved", lambda *name: settings.get(name))
    layer = holding("gpt_oss:GptOssAttention", {"rotary_emb": rope()})
    assert bool(reasons(layer, architecture="GptOssForCausalLM")["rotary_emb"]) == gated


@pytest.mark.parametrize(
    ("asked", "quantised", "gated"),
    [
        (None, None, True),
        ("auto", None, True),
        ("auto", "FP8", False),
        ("bf16", None, True),
        ("bfloat16", "FP8", True),
        ("fp8_e4m3", None, False),
    ],
)
def test_the_dtype_of_the_cache_decides(asked, quantised, gated, cuda, monkeypatch):
    monkeypatch.setattr(rope_bypass, "resolved", lambda *name: asked if name == ("model", "kv_cache_dtype") else None)
    layer = holding(WRITERS[0], {"rotary_emb": rope()})
    model = Model(layer)
    model.quant_config = SimpleNamespace(kv_cache_quant_algo=quantised)
    assert bool(walked_around(layer.rotary_emb, Host(model=model))) == gated


@pytest.mark.parametrize("engine", ["llama"], indirect=True)
def test_the_settings_of_the_cache_are_where_they_are_read(engine):
    assert running.resolved("model", "kv_cache_dtype") == "auto"
    assert running.resolved("schedule", "disable_hybrid_swa_memory") is False
    assert not running.resolved("parallel", "enable_prefill_context_parallel")


# Ropes that are called otherwise than the task says.


def test_a_rope_whose_result_is_dropped_is_gated(cuda):
    """Llama 4 relies on its being in place: a candidate's own tensors would be lost."""
    assert "in place" in reasons(holding("llama4:Llama4Attention", {"rotary_emb": rope()}))["rotary_emb"]


@pytest.mark.parametrize("name", ["deepseek_v2:DeepseekV2AttentionMLA"])
def test_a_rope_of_latent_attention_is_gated(name):
    layer = holding(name, {"rotary_emb": rope(), "attn_mqa": nn.Identity()})
    assert "heads on an axis of their own" in reasons(layer)["rotary_emb"]


@pytest.mark.parametrize("name", ["gemma3_causal:Gemma3Attention", "lfm2:Lfm2Attention", "lfm2_moe:Lfm2MoeAttention"])
def test_a_rope_of_heads_on_an_axis_of_their_own_is_gated(name):
    assert "heads on an axis of their own" in reasons(holding(name, {"rotary_emb": rope()}))["rotary_emb"]


class Uses(nn.Module):
    """Ways to use a child's result."""

    def forward(self, x):
        kept = self.kept(x)
        dropped, also = self.dropped(x), 0
        if _is_npu:  # noqa: F821 - a platform's flag, never run here
            also = dropped
        del dropped
        self.alone(x)
        return kept, also


@pytest.mark.parametrize(("child", "drops"), [("kept", False), ("dropped", False), ("alone", True), ("other", False)])
def test_results_that_are_dropped_are_known(child, drops):
    assert model_code.drops_result_of(Uses, child) == drops
