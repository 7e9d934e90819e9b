"""The L1 references against independent truth: transformers' and torch's modules, and formulas written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm as HostGemmaRMSNorm
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.glm import modeling_glm
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from fastkernels.tasks.L1.attention import Attention
from fastkernels.tasks.L1.embedding import VocabParallelEmbedding
from fastkernels.tasks.L1.gelu import GELU
from fastkernels.tasks.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.layer_norm import LayerNorm
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.quick_gelu import QuickGELU
from fastkernels.tasks.L1.relu import ReLU
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding, inverse_frequencies
from fastkernels.tasks.L1.silu import SiLU
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L1.softmax import Softmax
from fastkernels.tasks.L1.squared_relu import ReLUSquaredActivation
from fastkernels.tasks.L1.topk_softmax import TopkSoftmax

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def same(ours: nn.Module, host: nn.Module, dtype: torch.dtype, *shape: int, inputs: int = 1) -> bool:
    """Whether two modules with the same state, drawn at random, agree in every bit on random inputs."""
    for parameter in host.parameters():
        parameter.normal_(1.0, 0.5)
    ours.load_state_dict(host.state_dict())
    arguments = [(torch.randn(shape) * 3.0).to(dtype) for _ in range(inputs)]
    return torch.equal(ours.to(dtype)(*arguments), host.to(dtype)(*arguments))


# Norms


@by_dtype
def test_rms_norm_is_llamas_in_every_bit(dtype):
    assert same(RMSNorm(96, 1e-5), modeling_llama.LlamaRMSNorm(96, 1e-5), dtype, 50, 96)


@by_dtype
def test_gemma_rms_norm_is_gemmas_in_every_bit(dtype):
    assert same(GemmaRMSNorm(96, 1e-5), HostGemmaRMSNorm(96, 1e-5), dtype, 50, 96)


@by_dtype
def test_gate_after_the_norm_is_qwen3_nexts_in_every_bit(dtype):
    assert same(RMSNormGated(96, 1e-6), Qwen3NextRMSNormGated(96, 1e-6), dtype, 50, 96, inputs=2)


@by_dtype
def test_gate_before_the_norm_is_mamba2s_in_every_bit(dtype):
    ours = RMSNormGated(96, 1e-6, norm_before_gate=False)
    assert same(ours, MambaRMSNormGated(96, 1e-6), dtype, 50, 96, inputs=2)


@by_dtype
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, False)])
def test_layer_norm_is_torchs_in_every_bit(dtype, weight, bias):
    host = nn.LayerNorm(96, 1e-6, elementwise_affine=weight, bias=bias)
    assert same(LayerNorm(96, 1e-6, weight=weight, bias=bias), host, dtype, 50, 96)


def test_bfloat16_tells_the_two_places_of_gemmas_rounding_apart():
    x, weight = torch.randn(50, 96).bfloat16(), torch.randn(96).bfloat16()
    gemma, llama = GemmaRMSNorm(96).bfloat16(), RMSNorm(96).bfloat16()
    gemma.weight.copy_(weight)
    llama.weight.copy_(1 + weight)
    assert not torch.equal(gemma(x), llama(x))


@pytest.mark.parametrize("norm", [RMSNorm, GemmaRMSNorm])
def test_the_residual_stream_is_the_sum_rounded_before_it_is_normalised(norm):
    module = norm(96).bfloat16()
    x, residual = torch.randn(2, 50, 96).bfloat16()
    normed, stream = module(x, residual)
    assert torch.equal(stream, x + residual)
    assert torch.equal(normed, module(x + residual))


# Activations


@by_dtype
@pytest.mark.parametrize(
    ("module", "host"),
    [
        (SiLU(), nn.SiLU()),
        (ReLU(), nn.ReLU()),
        (GELU(), nn.GELU()),
        (GELU("tanh"), ACT2FN["gelu_pytorch_tanh"]),
        (QuickGELU(), ACT2FN["quick_gelu"]),
        (ReLUSquaredActivation(), ACT2FN["relu2"]),
    ],
    ids=lambda m: type(m).__name__,
)
def test_activations_are_the_hosts_in_every_bit(module, host, dtype):
    x = torch.cat((torch.linspace(-40, 40, 999), torch.randn(999))).to(dtype)
    assert torch.equal(module(x), host(x))


@by_dtype
@pytest.mark.parametrize(
    ("module", "activation"),
    [(SiluAndMul(), "silu"), (GeluAndMul(), "gelu"), (GeluAndMul("tanh"), "gelu_pytorch_tanh")],
    ids=["silu", "gelu", "gelu_tanh"],
)
def test_gated_activations_are_activation_of_gate_times_up_in_every_bit(module, activation, dtype):
    both = (torch.randn(40, 66) * 3.0).to(dtype)
    gate, up = both[:, :33], both[:, 33:]  # views: the CPU's activations round strided and dense rows differently
    assert torch.equal(module(both), ACT2FN[activation](gate) * up)


@pytest.mark.parametrize(
    "build", [lambda: GELU("erf"), lambda: GeluAndMul("erf"), lambda: RMSNormGated(8, activation="relu")]
)
def test_an_unknown_variant_is_refused(build):
    with pytest.raises(ValueError, match="is not"):
        build()


# Linear, embedding, softmax, routing


@by_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs_in_every_bit(dtype, bias):
    assert same(Linear(48, 33, bias=bias), nn.Linear(48, 33, bias=bias), dtype, 7, 48)


def test_linear_is_the_sum_of_products():
    module, x = Linear(5, 3).double(), torch.randn(2, 5).double()
    module.weight.normal_()
    module.bias.normal_()
    for row, column in itertools.product(range(2), range(3)):
        total = math.fsum(float(a * b) for a, b in zip(x[row], module.weight[column], strict=True))
        assert float(module(x)[row, column]) == pytest.approx(total + float(module.bias[column]), rel=1e-12)


def test_embedding_reads_the_padding_row_like_any_other():
    module = VocabParallelEmbedding(11, 4, padding_idx=3)
    module.weight.normal_()
    ids = torch.tensor([[3, 0], [10, 3]])
    assert torch.equal(module(ids), torch.stack([torch.stack([module.weight[i] for i in row]) for row in ids]))


@by_dtype
def test_softmax_is_rounded_from_float32(dtype):
    x = (torch.randn(9, 70) * 5).to(dtype)
    powers = torch.exp(x.double() - x.double().max(-1, keepdim=True).values)
    expected = powers / powers.sum(-1, keepdim=True)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(Softmax()(x).double(), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("renormalize", [True, False])
def test_topk_softmax_routes_as_qwen3_moe(renormalize):
    class Config:
        num_experts_per_tok, num_experts, norm_topk_prob, hidden_size = 4, 16, renormalize, 32

    router = Qwen3MoeTopKRouter(Config())
    router.weight.normal_()
    logits, weights, ids = router(torch.randn(20, 32))
    got_weights, got_ids = TopkSoftmax(4, renormalize)(logits)
    assert torch.equal(got_ids, ids)
    assert torch.equal(got_weights, weights)
    assert got_weights.dtype == torch.float32
    assert got_ids.dtype == torch.int64


def test_topk_softmax_keeps_float32_weights_for_narrow_logits():
    weights, _ = TopkSoftmax(2)(torch.randn(3, 8).bfloat16())
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))


# Rotary embedding

ORIGINAL = {"original_max_position_embeddings": 2048}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "llama3_32": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    "yarn_betas": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 24.0, "beta_slow": 2.0, **ORIGINAL},
    "yarn_untruncated": {"rope_type": "yarn", "factor": 32.0, "truncate": False, **ORIGINAL},
    "yarn_magnitude": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, **ORIGINAL},
    "yarn_mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7, **ORIGINAL},
}


def host_config(head_dim: int, scaling: dict) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 1e4, **scaling},
    )


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=list(SCALINGS))
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scaled_frequencies_are_transformers_in_every_bit(scaling, head_dim):
    expected, expected_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](host_config(head_dim, scaling), "cpu")
    frequencies, factor = inverse_frequencies(head_dim, 1e4, 4096, scaling)
    assert torch.equal(frequencies, expected)
    assert factor == pytest.approx(expected_factor, rel=1e-15)


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, *SCALINGS.values()], ids=["default", *SCALINGS])
@by_dtype
def test_the_table_is_the_rows_of_transformers_rotary_module(scaling, dtype):
    host = modeling_llama.LlamaRotaryEmbedding(host_config(64, scaling))
    cos, sin = host(torch.empty(0, dtype=dtype), torch.arange(4096)[None])
    ours = RotaryEmbedding(64, 64, 4096, 1e4, dtype=dtype, rope_scaling=scaling)
    assert torch.equal(ours.cos_sin_cache, torch.cat((cos[0, :, :32], sin[0, :, :32]), dim=-1))


@by_dtype
@pytest.mark.parametrize(
    ("apply", "rotary_dim", "neox"),
    [
        (modeling_llama.apply_rotary_pos_emb, 64, True),
        (modeling_phi3.apply_rotary_pos_emb, 64, True),
        (modeling_phi3.apply_rotary_pos_emb, 24, True),
        (modeling_glm.apply_rotary_pos_emb, 64, False),
        (modeling_glm.apply_rotary_pos_emb, 24, False),
    ],
    ids=["neox_llama", "neox_phi3", "neox_partial", "interleaved", "interleaved_partial"],
)
def test_rotate_is_transformers_apply_rotary_pos_emb_in_every_bit(apply, rotary_dim, neox, dtype):
    query, key = torch.randn(2, 9, 6, 64).to(dtype), torch.randn(2, 9, 2, 64).to(dtype)
    angles = torch.rand(2, 9, rotary_dim // 2) * 100
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    full = [torch.cat((table, table), dim=-1) for table in (cos, sin)]
    expected = apply(query.transpose(1, 2), key.transpose(1, 2), *full)
    got = RotaryEmbedding(64, rotary_dim, 1, 1e4, neox).rotate(query, key, cos, sin)
    for ours, host in zip(got, expected, strict=True):
        assert torch.equal(ours, host.transpose(1, 2))


@pytest.mark.parametrize("neox", [True, False])
def test_each_pair_turns_by_its_position_times_its_frequency(neox):
    module = RotaryEmbedding(10, 8, 50, 1e4, neox).double()
    x = torch.randn(1, 10).double()
    got = module(torch.tensor([37]), x)[0][0]
    for pair in range(4):
        first, second = (pair, pair + 4) if neox else (2 * pair, 2 * pair + 1)
        turned = complex(x[0, first], x[0, second]) * complex(math.cos(a := 37 * 1e4 ** (-pair / 4)), math.sin(a))
        assert complex(got[first], got[second]) == pytest.approx(turned, abs=1e-5)
    assert torch.equal(got[8:], x[0, 8:])


def test_rotary_forward_is_rotate_with_the_rows_of_its_positions_and_leaves_its_inputs_alone():
    module = RotaryEmbedding(16, 16, 32, 1e4)
    positions = torch.tensor([3, 0, 31, 3])
    query, key = torch.randn(4, 3 * 16), torch.randn(4, 16)
    before = query.clone(), key.clone()
    cos, sin = module.cos_sin_cache[positions][None].chunk(2, dim=-1)
    expected = module.rotate(query.view(1, 4, 3, 16), key.view(1, 4, 1, 16), cos, sin)
    got = module(positions, query, key)
    assert all(torch.equal(g, e.view(g.shape)) for g, e in zip(got, expected, strict=True))
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])
    alone, none = module(positions, query)
    assert torch.equal(alone, got[0])
    assert none is None


def test_rotary_logits_depend_on_distance_only():
    module, query, key = RotaryEmbedding(32, 32, 200, 1e4).double(), torch.randn(1, 32), torch.randn(1, 32)

    def logit(i: int, j: int) -> float:
        turned = module(torch.tensor([i]), query.double())[0], module(torch.tensor([j]), key.double())[0]
        return float((turned[0] * turned[1]).sum())

    assert logit(20, 13) == pytest.approx(logit(190, 183), abs=1e-4)
    assert logit(20, 13) != pytest.approx(logit(13, 20), abs=1e-2)


def test_rotary_state_dict_is_empty_and_an_unknown_scaling_is_refused():
    assert not RotaryEmbedding(16, 16, 32, 1e4).state_dict()
    with pytest.raises(ValueError, match="longrope"):
        RotaryEmbedding(16, 16, 32, 1e4, rope_scaling={"rope_type": "longrope", "factor": 2.0})


# Attention


def qkv(length: int, total: int, *, heads: int = 6, kv: int = 2, size: int = 16, dtype: torch.dtype = torch.float64):
    shapes = (2, heads, length, size), (2, kv, total, size), (2, kv, total, size)
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def naive(module: Attention, query, key, value, mask=None) -> torch.Tensor:
    """Attention by loops over batch, head, query and key, straight from the contract."""
    batch, heads, length, _ = query.shape
    total, groups = key.shape[2], heads // key.shape[1]
    mask = None if mask is None else mask.expand(batch, heads, length, total)
    out = torch.zeros(batch, heads, length, value.shape[-1], dtype=query.dtype)
    for b, h, i in itertools.product(range(batch), range(heads), range(length)):
        logits = {}
        for j in range(total):
            newest = total - length + i
            if module.causal and mask is None and j > newest:
                continue
            if module.sliding_window is not None and j <= newest - module.sliding_window:
                continue
            if mask is not None and mask.dtype == torch.bool and not mask[b, h, i, j]:
                continue
            logit = float(query[b, h, i] @ key[b, h // groups, j]) * module.scale
            if module.logits_soft_cap is not None:
                logit = module.logits_soft_cap * math.tanh(logit / module.logits_soft_cap)
            logits[j] = logit if mask is None or mask.dtype == torch.bool else logit + float(mask[b, h, i, j])
        total_weight = sum(math.exp(x) for x in logits.values())
        total_weight += 0.0 if module.sinks is None else math.exp(float(module.sinks[h]))
        for j, logit in logits.items():
            out[b, h, i] += math.exp(logit) / total_weight * value[b, h // groups, j]
    return out


EXTRAS = {
    "plain": {},
    "not_causal": {"causal": False},
    "scaled": {"scale": 0.7},
    "window": {"sliding_window": 3},
    "wide_window": {"sliding_window": 50},
    "not_causal_window": {"sliding_window": 3, "causal": False},
    "soft_cap": {"logits_soft_cap": 1.5},
    "sinks": {"has_sinks": True},
    "all": {"sliding_window": 3, "logits_soft_cap": 1.5, "has_sinks": True, "scale": 0.7},
}
CAUSAL = {name: extras for name, extras in EXTRAS.items() if extras.get("causal", True)}
by_extras = pytest.mark.parametrize("extras", EXTRAS.values(), ids=list(EXTRAS))


def attention(extras: dict) -> Attention:
    module = Attention(6, 16, num_kv_heads=2, **extras).double()
    if module.sinks is not None:
        module.sinks.normal_()
    return module


@by_extras
@pytest.mark.parametrize(("length", "total"), [(5, 5), (1, 5), (3, 6), (1, 1)])
def test_attention_is_the_loop_over_heads_queries_and_keys(extras, length, total):
    module, inputs = attention(extras), qkv(length, total)
    torch.testing.assert_close(module(*inputs), naive(module, *inputs), rtol=1e-10, atol=1e-10)


@by_extras
@pytest.mark.parametrize("kind", ["bool", "bool_per_head", "float", "padding"])
def test_a_mask_replaces_causality_and_nothing_else(extras, kind):
    module, inputs = attention(extras), qkv(4, 6)
    seen = torch.rand(2, 6 if kind == "bool_per_head" else 1, 1 if kind == "padding" else 4, 6) < 0.6
    seen[..., -3:] = True
    mask = torch.randn(2, 6, 4, 6, dtype=torch.float64) if kind == "float" else seen
    torch.testing.assert_close(module(*inputs, mask), naive(module, *inputs, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("extras", CAUSAL.values(), ids=list(CAUSAL))
def test_decode_on_a_cache_is_the_last_row_of_the_prefill(extras):
    module, (query, key, value) = attention(extras), qkv(9, 9)
    prefill = module(query, key, value)
    for end in range(1, 10):
        row = module(query[:, :, end - 1 : end], key[:, :, :end], value[:, :, :end])
        torch.testing.assert_close(row, prefill[:, :, end - 1 : end], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("extras", CAUSAL.values(), ids=list(CAUSAL))
def test_a_prefill_in_chunks_is_the_prefill(extras):
    module, (query, key, value) = attention(extras), qkv(9, 9)
    chunks = [module(query[:, :, a:b], key[:, :, :b], value[:, :, :b]) for a, b in ((0, 4), (4, 6), (6, 9))]
    torch.testing.assert_close(torch.cat(chunks, dim=2), module(query, key, value), rtol=1e-10, atol=1e-10)


def test_cross_attention_takes_any_number_of_keys_and_another_value_width():
    module = attention({"causal": False})
    query, key, value = qkv(3, 8)
    value = torch.cat((value, value), dim=-1)
    out = module(query, key, value)
    assert out.shape == (2, 6, 3, 32)
    torch.testing.assert_close(out, naive(module, query, key, value), rtol=1e-10, atol=1e-10)


class Host(nn.Module):
    """The attributes that transformers' attention functions read from the calling module."""

    def __init__(self, groups: int, sinks: torch.Tensor | None = None) -> None:
        super().__init__()
        self.num_key_value_groups, self.sinks, self.is_causal, self.head_dim = groups, sinks, True, 16
        self.eval()


def additive_causal(length: int, dtype: torch.dtype, window: int | None = None) -> torch.Tensor:
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen = seen if window is None else seen & torch.ones_like(seen).triu(1 - window)
    return torch.zeros(1, 1, length, length, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


@pytest.mark.parametrize("window", [None, 4])
def test_sinks_and_window_are_gpt_oss(window):
    sinks = torch.randn(6)
    module = Attention(6, 16, num_kv_heads=2, has_sinks=True, sliding_window=window)
    module.sinks.copy_(sinks)
    inputs = qkv(9, 9, dtype=torch.float32)
    mask = additive_causal(9, torch.float32, window)
    expected, _ = modeling_gpt_oss.eager_attention_forward(Host(3, sinks), *inputs, mask, module.scale)
    torch.testing.assert_close(module(*inputs), expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


@by_dtype
@pytest.mark.parametrize("masked", [True, False])
def test_soft_cap_is_gemma2s_in_every_bit(dtype, masked):
    module, inputs = Attention(6, 16, num_kv_heads=2, logits_soft_cap=5.0, scale=1.0), qkv(9, 9, dtype=dtype)
    mask = additive_causal(9, dtype)
    expected, _ = modeling_gemma2.eager_attention_forward(Host(3), *inputs, mask, scaling=1.0, softcap=5.0)
    assert torch.equal(module(*inputs, mask if masked else None), expected.transpose(1, 2))


@by_dtype
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("length", [1, 9])
def test_plain_attention_is_transformers_sdpa_in_every_bit(dtype, mask, length):
    module, inputs = Attention(6, 16, num_kv_heads=2), qkv(length, 9, dtype=dtype)
    float_mask = additive_causal(9, dtype)[:, :, -length:]
    given = {"none": None, "bool": float_mask == 0, "float": float_mask}[mask]
    expected, _ = sdpa_attention_forward(Host(3), *inputs, given, scaling=module.scale)
    assert torch.equal(module(*inputs, given), expected.transpose(1, 2))


def test_a_sink_of_minus_infinity_is_no_sink_and_a_huge_cap_no_cap():
    inputs = qkv(7, 7)
    plain = attention({})(*inputs)
    sunk = attention({"has_sinks": True})
    sunk.sinks.fill_(float("-inf"))
    torch.testing.assert_close(sunk(*inputs), plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(attention({"logits_soft_cap": 1e6})(*inputs), plain, rtol=1e-8, atol=1e-8)


# All of them


@pytest.mark.parametrize("extras", [{}, {"has_sinks": True, "logits_soft_cap": 3.0}], ids=["sdpa", "written_out"])
def test_attention_and_rope_carry_gradients(extras):
    with torch.enable_grad():
        query, key, value = (t.float().requires_grad_() for t in qkv(5, 5))
        angles = torch.rand(1, 5, 8)
        turned = RotaryEmbedding(16, 16, 1, 1e4).rotate(
            query.transpose(1, 2), key.transpose(1, 2), angles.cos(), angles.sin()
        )
        out = Attention(6, 16, num_kv_heads=2, **extras)(*(t.transpose(1, 2) for t in turned), value)
        out.square().sum().backward()
    for leaf in (query, key, value):
        assert torch.isfinite(leaf.grad).all()
        assert F.normalize(leaf.grad.flatten(), dim=0).norm() == pytest.approx(1.0, rel=1e-5)
