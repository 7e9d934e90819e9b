"""Norms that SGLang's models walk around, by the code of its own classes."""

from __future__ import annotations

import pytest
from torch import nn

from tests.patches.sglang.layers import HEAD, holding, norm, reasons, rope

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HEADS = ("q_norm", "k_norm")


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("qwen3:Qwen3Attention", HEADS),
        ("qwen3_moe:Qwen3MoeAttention", HEADS),
        ("glm4_moe:Glm4MoeAttention", HEADS),
        ("sdar:SDARAttention", HEADS),
        ("laguna:LagunaAttention", HEADS),
        ("interns1pro:InternS1ProTextAttention", HEADS),  # by its base, in another file
        ("bailing_moe:BailingMoEAttention", ("query_layernorm", "key_layernorm")),
        ("llada2:LLaDA2MoeAttention", ("query_layernorm", "key_layernorm")),
        ("llama4:Llama4Attention", ("qk_norm",)),
    ],
)
@pytest.mark.parametrize("fits", [True, False])
def test_norms_of_heads_are_gated_whatever_their_names_where_a_kernel_takes_them(name, norms, fits, cuda, monkeypatch):
    from sglang.srt.models import utils

    monkeypatch.setattr(utils, "can_use_fused_inplace_qknorm", lambda width, dtype: fits and width == HEAD)
    options = {"has_weight": False} if norms == ("qk_norm",) else {}
    found = reasons(holding(name, {n: norm(**options) for n in norms}))
    assert {n: "fused_inplace_qknorm" in reason for n, reason in found.items()} == dict.fromkeys(norms, fits)


@pytest.mark.parametrize("name", ["olmoe:OlmoeAttention", "olmo2:Olmo2Attention", "afmoe:AfmoeAttention"])
def test_norms_of_heads_that_are_called_are_sites(name, cuda):
    assert reasons(holding(name, {n: norm() for n in HEADS})) == dict.fromkeys(HEADS, "")


def test_norms_of_grok_are_gated_on_every_platform():
    norms = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
    found = reasons(holding("grok:Grok1DecoderLayer", {n: norm() for n in norms}))
    assert all("fused_dual_residual_rmsnorm" in found[n] for n in norms)
    assert "fused_dual_residual_rmsnorm" in reasons(holding("grok:Grok1Model", {"norm": norm()}))["norm"]


BEHIND = "post_feedforward_layernorm"


@pytest.mark.parametrize(
    ("moe", "ple", "gated"),
    [(False, False, {BEHIND}), (True, False, {BEHIND, f"{BEHIND}_1", f"{BEHIND}_2"}), (True, True, set())],
)
def test_norms_behind_gemma_4s_mlp_are_gated_where_a_kernel_scales_too(moe, ple, gated, cuda):
    names = ("input_layernorm", "pre_feedforward_layernorm", BEHIND, *((f"{BEHIND}_1", f"{BEHIND}_2") if moe else ()))
    children = {n: norm() for n in names} | ({"moe": nn.Identity()} if moe else {})
    layer = holding("gemma4_causal:Gemma4DecoderLayer", children, has_ple=ple)
    assert {n for n, reason in reasons(layer).items() if reason} == gated


def test_norms_and_rope_of_minimax_m3_are_gated_by_its_flag():
    children = {"q_norm": norm(), "k_norm": norm(), "rotary_emb": rope(), "index_q_norm": norm()}
    for flag, wide, gated in [(True, 128, 4), (True, 64, 3), (False, 128, 0)]:
        layer = holding("minimax_m3:MiniMaxM3Attention", children, _use_fused_qknorm_rope=flag, idx_head_dim=wide)
        assert sum("minimax_qknorm_rope" in reason for reason in reasons(layer).values()) == gated


@pytest.mark.parametrize("gate", [True, False])
def test_norms_and_rope_under_a_gate_of_heads_are_gated_by_their_method(gate, cuda):
    """As Qwen3.5's since 0.5.17, which no machine without the engine's kernels imports."""

    class Layer(nn.Module):
        def forward_prepare_cuda_fused(self): ...

    layer = Layer()
    layer.q_norm, layer.k_norm, layer.rotary_emb, layer.attn_output_gate = norm(), norm(), rope(), gate
    assert {bool(reason) for reason in reasons(layer).values()} == {gate}
