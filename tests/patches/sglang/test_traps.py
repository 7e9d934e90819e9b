"""Where SGLang walks around a module or means more than the task says: ours runs the original, and reports it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

import fastkernels
from fastkernels import PatchError
from fastkernels.patches.sglang import bypass, router, running
from tests.patches.sglang.conftest import STEPS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
with_model = lambda *names: pytest.mark.parametrize("engine", names, indirect=True, scope="module")  # noqa: E731


def sites(engine, task):
    planned = fastkernels.plan(engine.model, "reference", select=lambda site: site.task.name == task).sites
    return [s for s in planned if s.task == task]


def patched(engine, **kwargs):
    return fastkernels.patch(engine.model, "reference", select=lambda site: site.task.level == 1, **kwargs)


def state_of(handle, path):
    return next(s for s in handle.report.sites if s.path == path)


# 1. Query and key norms that one fused kernel computes.


@with_model("qwen3", "qwen3_moe")
def test_norms_of_query_and_key_are_sites_where_they_are_called(engine):
    with patched(engine) as handle:
        engine.generate()
        norms = [s for s in handle.report.sites if s.path.endswith(("q_norm", "k_norm"))]
    assert [s.calls for s in norms] == [STEPS] * 4


@with_model("qwen3", "qwen3_moe")
@pytest.mark.parametrize("fits", [True, False])
def test_norms_of_query_and_key_are_gated_where_a_fused_kernel_takes_their_weights(engine, fits, monkeypatch):
    """As on CUDA, where the engine's own test of the width decides."""
    from sglang.srt.models import utils

    asked = []
    monkeypatch.setattr(bypass, "on_cuda", lambda: True)
    monkeypatch.setattr(utils, "can_use_fused_inplace_qknorm", lambda *a: asked.append(a) or fits, raising=False)
    norms = {s.path.rpartition(".")[2]: (s.state, s.reason) for s in sites(engine, "rms_norm")}
    assert (norms["q_norm"][0], norms["k_norm"][0]) == (("gated",) * 2 if fits else ("applied",) * 2)
    assert norms["input_layernorm"][0] == "applied"
    assert asked[0] == (32, torch.float32)
    assert not fits or "fused_inplace_qknorm" in norms["q_norm"][1]


@with_model("qwen3")
def test_norms_that_inductor_is_left_to_fuse_are_sites(engine, monkeypatch):
    monkeypatch.setattr(bypass, "on_cuda", lambda: True)
    monkeypatch.setattr(bypass, "inductor_fuses", lambda: True)
    assert all(s.state == "applied" for s in sites(engine, "rms_norm"))


@with_model("qwen3_moe:bfloat16", "qwen3_moe")
def test_norms_and_rope_inside_one_fused_kernel_are_gated_in_its_dtype(engine, monkeypatch):
    from sglang.srt.models import utils

    monkeypatch.setattr(bypass, "on_cuda", lambda: True)
    monkeypatch.setattr(utils, "can_use_fused_inplace_qknorm", lambda *args: False)
    for layer in engine.model.model.layers:
        monkeypatch.setitem(vars(layer.self_attn), "use_fused_qk_norm_rope", True)
    reasons = [s.reason for t in ("rms_norm", "rotary_emb") for s in sites(engine, t) if s.state == "gated"]
    rounded = next(engine.model.parameters()).dtype == torch.bfloat16
    assert len(reasons) == (5 if rounded else 0) and all("use_fused_qk_norm_rope" in r for r in reasons)


@with_model("qwen3", "qwen3_moe")
def test_norms_of_query_and_key_are_gated_where_a_cpu_has_a_kernel_for_both(engine, monkeypatch):
    from sglang.srt.models import utils

    monkeypatch.setattr(utils, "can_use_fused_qk_norm_cpu", lambda q, *more: q.dim() == 2, raising=False)
    norms = {s.path.rpartition(".")[2]: (s.state, s.reason) for s in sites(engine, "rms_norm")}
    assert norms["q_norm"][0] == norms["k_norm"][0] == "gated" and "fused_qk_norm_cpu" in norms["q_norm"][1]
    assert norms["input_layernorm"][0] == "applied"


# 2. Norms fused with an all-reduce.


@with_model("qwen3")
def test_norms_between_blocks_are_gated_where_all_reduce_fusion_may_take_their_place(engine, monkeypatch):
    monkeypatch.setattr(bypass, "setting", lambda name: {"tp_size": 2}.get(name))
    assert all(s.state == "applied" for s in sites(engine, "rms_norm"))
    fused = {("comm", "flashinfer_allreduce_fusion_backend"): "trtllm"}
    monkeypatch.setattr(bypass, "execution", lambda *names: fused.get(names))
    gated = {s.path.rpartition(".")[2] for s in sites(engine, "rms_norm") if s.state == "gated"}
    assert gated == {"input_layernorm", "post_attention_layernorm"}


@with_model("llama")
@pytest.mark.parametrize("ranks", [1, 2])
def test_norms_are_gated_where_the_model_brings_fusions_for_several_ranks(engine, ranks, monkeypatch):
    """As since 0.5.23: a layer's boundaries may hold kernels of the model's own."""
    monkeypatch.setattr(bypass, "setting", lambda name: {"tp_size": ranks}.get(name))
    for layer in engine.model.model.layers:
        monkeypatch.setitem(vars(layer), "ffn_boundary", SimpleNamespace(fusions=object()))
    gated = {s.path.rpartition(".")[2]: s.reason for s in sites(engine, "rms_norm") if s.state == "gated"}
    assert set(gated) == {"norm"} | ({"input_layernorm", "post_attention_layernorm"} if ranks > 1 else set())
    assert "in its stead" in gated["norm"]


@with_model("llama")
def test_the_call_for_fusion_runs_the_candidate_where_nothing_is_fused(engine):
    norm = engine.model.model.layers[0].input_layernorm
    x, residual = torch.randn(3, 128), torch.randn(3, 128)
    want = norm(x.clone(), residual.clone())
    with patched(engine) as handle, torch.no_grad():
        got = norm.forward_with_allreduce_fusion(x.clone(), residual.clone())
        assert state_of(handle, "model.layers.0.input_layernorm").calls == 1
    torch.testing.assert_close(got, want)


# 3. Arguments that a norm's task does not have.


@with_model("llama")
def test_a_second_addition_runs_the_original_and_is_counted(engine):
    norm = engine.model.model.layers[0].input_layernorm
    x, residual, more = (torch.randn(3, 128) for _ in range(3))
    want = norm(x, residual, more)
    with patched(engine) as handle, torch.no_grad():
        got = norm(x, residual, post_residual_addition=more)
        site = state_of(handle, "model.layers.0.input_layernorm")
    assert all(map(torch.equal, got, want))
    assert site.calls == 0 and site.bypassed == {"argument post_residual_addition is given": 1}


@with_model("llama")
def test_a_norm_for_a_quantised_linear_runs_the_original_and_is_counted(engine, monkeypatch):
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    layer = engine.model.model.layers[0]
    if "quant_linear" not in inspect.signature(layer.input_layernorm.forward_native).parameters:
        pytest.skip("this version's norms have no such argument")
    x = torch.randn(3, 128)
    with patched(engine) as handle, torch.no_grad():
        layer.input_layernorm(x, quant_linear=layer.self_attn.qkv_proj)
        with monkeypatch.context() as quantised:
            quantised.setitem(vars(layer.self_attn.qkv_proj), "quant_method", object.__new__(Fp8LinearMethod))
            layer.input_layernorm(x, quant_linear=layer.self_attn.qkv_proj)
        site = state_of(handle, "model.layers.0.input_layernorm")
    assert site.calls == 1 and site.bypassed == {"argument quant_linear is given": 1}


@with_model("llama")
def test_a_norm_that_quantises_for_the_linear_behind_it_is_gated(engine, monkeypatch):
    """Since 0.5.23 it is told once which linear that is."""
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    layer = engine.model.model.layers[0]
    monkeypatch.setitem(vars(layer.input_layernorm), "_quant_linear", layer.self_attn.qkv_proj)
    state = {s.path: (s.state, s.reason) for s in sites(engine, "rms_norm")}
    assert state["model.layers.0.input_layernorm"][0] == "applied"
    monkeypatch.setitem(vars(layer.self_attn.qkv_proj), "quant_method", object.__new__(Fp8LinearMethod))
    state = {s.path: (s.state, s.reason) for s in sites(engine, "rms_norm")}
    assert state["model.layers.0.input_layernorm"][0] == "gated"
    assert "quantised for the linear" in state["model.layers.0.input_layernorm"][1]


# 4. Rotary embedding: one instance, and a call that also writes the cache.


@with_model("llama")
def test_one_rotary_instance_serves_every_layer_and_is_one_site(engine):
    layers = engine.model.model.layers
    assert layers[0].self_attn.rotary_emb is layers[1].self_attn.rotary_emb
    assert [s.path for s in sites(engine, "rotary_emb")] == ["model.layers.0.self_attn.rotary_emb"]


@with_model("llama")
def test_a_rope_that_also_writes_the_cache_is_the_originals(engine):
    rope = engine.model.model.layers[0].self_attn.rotary_emb
    arguments = (torch.arange(3), torch.randn(3, 128), torch.randn(3, 64))
    with patched(engine) as handle:
        with pytest.raises(AssertionError, match="fused_set_kv_buffer_arg is not supported"):  # the original's, on CPU
            rope(*arguments, fused_set_kv_buffer_arg=object())
        rope(*arguments, fused_set_kv_buffer_arg=None)
        site = state_of(handle, "model.layers.0.self_attn.rotary_emb")
    assert site.calls == 1
    assert site.bypassed == {"argument fused_set_kv_buffer_arg is given, which also writes the KV cache": 1}


@with_model("llama")
def test_a_table_that_the_engine_replaces_is_never_read_again(engine):
    """It grows where positions go beyond it. The candidate was built for the former one."""
    rope = engine.model.model.layers[0].self_attn.rotary_emb
    query, key = torch.randn(1, 128), torch.randn(1, 64)
    rows = rope.cos_sin_cache.shape[0]
    before = rope.cos_sin_cache
    with patched(engine) as handle:
        rope._ensure_cos_sin_cache_length(rows)
        try:
            got = rope(torch.tensor([rows]), query, key)
            site = state_of(handle, "model.layers.0.self_attn.rotary_emb")
            want = type(rope).forward(rope, torch.tensor([rows]), query, key)
        finally:
            rope.cos_sin_cache = before
    torch.testing.assert_close(got, want)
    assert site.calls == 0 and sum(site.bypassed.values()) == 1


# 5. An MLP that computes several of its modules in one kernel (since 0.5.23).


@with_model("llama", "qwen3")
@pytest.mark.parametrize(
    ("shortcut", "gated"),
    [
        (("dual_gemm", SimpleNamespace(mode=None, can_run=lambda *args: False)), set()),
        (("dual_gemm", SimpleNamespace(mode="unquant", can_run=lambda *args: False)), {"gate_up_proj", "act_fn"}),
        (("activation_quant", SimpleNamespace(enabled=True, forward_decode=lambda x, act, down: act(x))), {"act_fn"}),
    ],
)
def test_parts_that_an_mlp_walks_around_are_gated_and_the_whole_is_a_site(engine, shortcut, gated, monkeypatch):
    for layer in engine.model.model.layers:
        monkeypatch.setitem(vars(layer.mlp), *shortcut)
    found = {(s.path.rpartition(".")[2], s.task): s for t in ("linear", "silu_and_mul") for s in sites(engine, t)}
    assert {name for (name, _), s in found.items() if s.state == "gated"} - {"lm_head"} == gated
    assert all(found[name, t].reason.startswith(shortcut[0]) for name, t in found if name in gated)
    whole = sites(engine, "gated_mlp")
    assert [s.state for s in whole] == ["applied"] * 2


# 6. No tokens.


@with_model("llama")
def test_an_idle_ranks_empty_batch_gives_what_the_original_gives(engine):
    norm = engine.model.model.norm
    x, residual = torch.empty(0, 128), torch.empty(0, 128)
    with patched(engine), torch.no_grad():
        got = norm(x, residual)
    assert [t.shape for t in got] == [x.shape, residual.shape]


class NotForNone(fastkernels.tasks.get_task("rms_norm").interface):
    """A norm that cannot do without rows, as a kernel with an empty grid."""

    def forward(self, x, residual=None):
        assert len(x)
        return super().forward(x, residual)


@with_model("llama")
def test_a_norm_that_fails_without_tokens_is_not_let_in(engine):
    with pytest.raises(fastkernels.CandidateError, match="on a call that rms_norm allows"):
        fastkernels.patch(engine.model, {"rms_norm": NotForNone})


# 7. Outputs that must not depend on the batch.


@with_model("llama")
def test_batch_invariant_mode_gates_every_site_and_so_refuses_to_start(engine, monkeypatch):
    from sglang.srt.batch_invariant_ops import batch_invariant_ops

    monkeypatch.setattr(batch_invariant_ops, "_batch_invariant_MODE", True)
    with pytest.raises(PatchError, match="batch-invariant mode"):
        fastkernels.patch(engine.model, "reference")


# Compiled modes.


@with_model("llama")
def test_entering_torch_compile_leaves_the_candidate_in_place(engine):
    """It puts ``forward_native`` where ``forward`` looks for its kernel; ours stands above that."""
    layer = engine.model.model.layers[0]
    ops = {
        "model.layers.0.input_layernorm": (layer.input_layernorm, (torch.randn(3, 128),)),
        "model.layers.0.mlp.act_fn": (layer.mlp.act_fn, (torch.randn(3, 512),)),
        "model.layers.0.self_attn.rotary_emb": (
            layer.self_attn.rotary_emb,
            (torch.arange(3), torch.randn(3, 128), torch.randn(3, 64)),
        ),
    }
    with patched(engine) as handle, torch.no_grad():
        for path, (op, arguments) in ops.items():
            op.enter_torch_compile(num_tokens=3)
            assert op._forward_method.__name__ == "forward_native"
            op(*arguments)
            op.leave_torch_compile()
            op(*arguments)
            site = state_of(handle, path)
            assert (path, site.calls, site.bypassed) == (path, 2, {})


@with_model("llama")
def test_a_forward_registered_for_another_platform_is_not_called_and_the_candidate_is(engine, monkeypatch):
    """The trap: SGLang asks for it on a platform that is not its own, and on no other."""
    fused_op = pytest.importorskip("sglang.kernels.fused_op", reason="0.5.13 has no such registry")
    norm = engine.model.model.norm
    if not isinstance(norm, fused_op.BaseFusedOp):
        pytest.skip("this version's layers have another base")
    called = []
    monkeypatch.setattr(fused_op.BaseFusedOp, "_oot_forward_registry", {})
    fused_op.BaseFusedOp.register_oot_forward(type(norm), lambda self, *args: called.append(1), "cuda")
    monkeypatch.setitem(vars(norm), "_forward_method", None)  # asked for again, as before a first call
    with torch.no_grad():
        want = norm(torch.ones(3, 128))
        with patched(engine) as handle:
            torch.testing.assert_close(norm(torch.ones(3, 128)), want)
            assert state_of(handle, "model.norm").calls == 1
    assert not called


class Fused(fastkernels.tasks.get_task("rms_norm").interface):
    """By torch's own fused norm, which shows in a graph; the engine's native forward is written out."""

    def forward(self, x, residual=None):
        x = x if residual is None else x + residual
        out = torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return out if residual is None else (out, x)


@with_model("llama")
@pytest.mark.skipif(torch._dynamo.config.disable, reason="TORCHDYNAMO_DISABLE is set")
def test_a_graph_that_is_traced_in_torch_compile_mode_holds_the_candidate(engine):
    norm = engine.model.model.layers[0].input_layernorm
    traced = []

    def backend(graph, inputs):
        traced.append({node.target for node in graph.graph.nodes})
        return graph.forward

    with fastkernels.patch(engine.model, {"rms_norm": Fused}, lowering="inline"), torch.no_grad():
        norm.enter_torch_compile(num_tokens=3)
        try:
            torch.compile(norm, backend=backend, fullgraph=True)(torch.randn(3, 128), torch.randn(3, 128))
        finally:
            norm.leave_torch_compile()
    assert torch.rms_norm in traced[0]


# What the engine does with weights without calling the module that holds them.


@with_model("llama", "gemma2")
def test_the_head_is_gated_for_nobody_calls_it(engine):
    gated = [s for s in sites(engine, "linear") if s.state == "gated"]
    assert [s.path for s in gated] == ["lm_head" if engine.name == "llama" else "model.embed_tokens"]
    assert "LogitsProcessor" in gated[0].reason


@with_model("llama")
def test_attention_on_pages_is_gated(engine):
    states = sites(engine, "attention")
    assert len(states) == 2 and all(s.state == "gated" and "paged cache" in s.reason for s in states)


@with_model("llama")
def test_what_lora_will_wrap_is_gated(engine, monkeypatch):
    monkeypatch.setattr(running, "setting", lambda name: True if name == "enable_lora" else None)
    states = {s.task: (s.state, s.reason) for s in fastkernels.plan(engine.model, "reference").sites}
    for task in ("linear", "embedding", "gated_mlp"):
        assert states[task][0] == "gated"
    assert "LoRA" in states["gated_mlp"][1] and states["rms_norm"][0] == "applied"


@with_model("llama")
def test_quantised_and_packed_weights_are_gated(engine, monkeypatch):
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    attention = engine.model.model.layers[0].self_attn
    monkeypatch.setitem(vars(attention.qkv_proj), "quant_method", object.__new__(Fp8LinearMethod))
    monkeypatch.setitem(vars(attention.o_proj), "use_intel_amx_backend", True)
    reasons = {s.path.rpartition(".")[2]: s.reason for s in sites(engine, "linear") if s.state == "gated"}
    assert "Fp8LinearMethod" in reasons["qkv_proj"] and "AMX" in reasons["o_proj"]


@with_model("llama")
def test_a_quantisation_method_that_comes_later_runs_the_original(engine, monkeypatch):
    """A wrapper, an online quantisation: the module reads otherwise from then on."""
    projection = engine.model.model.layers[0].self_attn.qkv_proj
    method = projection.quant_method
    with patched(engine) as handle, torch.no_grad():
        with monkeypatch.context() as later:
            later.setitem(vars(projection), "quant_method", type("Other", (type(method),), {})())
            projection(torch.randn(3, 128))
        site = state_of(handle, "model.layers.0.self_attn.qkv_proj")
    assert site.calls == 0 and len(site.bypassed) == 1


@with_model("mixtral")
def test_a_routers_choice_that_is_recorded_gates_the_block_and_not_its_experts(engine, monkeypatch):
    monkeypatch.setattr(router, "setting", lambda name: name == "enable_return_routed_experts")
    assert {s.state for t in ("shared_expert_moe", "topk_softmax") for s in sites(engine, t)} == {"gated"}
    assert {s.state for s in sites(engine, "fused_experts")} == {"applied"}
