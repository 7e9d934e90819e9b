"""Candidates of several levels at once: what shadows what, and what is carried inside references."""

from __future__ import annotations

import copy

import pytest
import torch

import fastkernels
from fastkernels.patches.build import materialise_buffers
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from tests.conftest import tiny_llama
from tests.patches.test_contract import logits


class MySilu(SiluAndMul):
    pass


class MyMLP(LlamaMLP):
    """Builds its parts as interfaces, so an L1 candidate is used inside."""


class OpaqueMLP(LlamaMLP):
    def forward(self, x):
        gate, up = torch.nn.functional.linear(x, self.gate_up_proj.weight).chunk(2, -1)
        return torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, self.down_proj.weight)


class PositionsOnly(torch.nn.Module):
    """A rotary candidate as serving engines call it: positions and flat heads, tables in a cache."""

    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style=True, dtype=torch.float32):
        super().__init__()
        self.inner = RotaryEmbedding(head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype)
        self.register_buffer("cos_sin_cache", self.inner.cos_sin_cache, persistent=False)

    def forward(self, positions, query, key=None):
        self.inner.cos_sin_cache = self.cos_sin_cache
        return self.inner(positions, query, key)


def test_a_task_without_a_module_of_its_own_is_carried_by_the_reference_around_it(llama, ids):
    want = logits(llama, ids)
    with fastkernels.patch(llama, {"silu_and_mul": MySilu}) as p:
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
        applied = {s.path: s for s in p.report.applied}
        assert set(applied) == {"model.layers.0.mlp", "model.layers.1.mlp"}
        assert all(s.candidate == "reference" and s.reason == "carries silu_and_mul" for s in applied.values())
        (candidate,) = p.report.candidates
        assert candidate.state == "applied" and candidate.sites == 2
        assert all(type(d.implementation.act_fn) is MySilu for d in p.dispatchers.values())


@pytest.mark.parametrize("heads", [2, 4])
def test_a_rotary_candidate_with_positions_only_turns_by_the_models_own_tables(ids, heads):
    model = tiny_llama(num_key_value_heads=heads)
    want = logits(model, ids)
    with fastkernels.patch(model, {"rotary_emb": PositionsOnly}) as p:
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)
        assert {s.task for s in p.report.applied} == {"attention_block"}


def test_an_l1_candidate_takes_effect_inside_an_l2_candidate_that_names_it(llama, ids):
    want = logits(llama, ids)
    with fastkernels.patch(llama, {"silu_and_mul": MySilu, "gated_mlp": MyMLP}) as p:
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
        states = {c.task: (c.state, c.sites) for c in p.report.candidates}
        assert states == {"silu_and_mul": ("applied", 2), "gated_mlp": ("applied", 2)}
        counts = p.dispatchers["model.layers.0.mlp"]
        assert counts.calls == 1 and type(counts.implementation.act_fn) is MySilu


def test_an_l1_candidate_that_never_runs_shows_zero_calls(llama, ids):
    class Norm(RMSNorm):
        pass

    @fastkernels.candidate("decoder_layer")
    class OpaqueLayer(fastkernels.tasks.get_task("decoder_layer").interface):
        def forward(self, hidden_states, cos=None, sin=None, mask=None, update=None):
            normed = RMSNorm.forward(self.input_layernorm, hidden_states)
            x = hidden_states + self.self_attn(normed, cos, sin, mask, update)
            norm = self.post_attention_layernorm.norm
            return x + self.mlp(RMSNorm.forward(norm, x))

    with fastkernels.patch(llama, {"rms_norm": Norm, "decoder_layer": OpaqueLayer}) as p:
        logits(llama, ids)
        inside = [s for s in p.report.applied if s.task == "rms_norm" and s.inside]
        assert inside and all(s.calls == 0 for s in inside)
        assert next(s for s in p.report.sites if s.path == "model.norm").calls == 1


def test_a_higher_candidate_shadows_the_lower_sites_inside_it(llama, ids):
    class Linear(fastkernels.tasks.get_task("linear").interface):
        pass

    class Alone(OpaqueMLP):
        def __init__(self, hidden_size, intermediate_size, hidden_act="silu", *, bias=False):
            torch.nn.Module.__init__(self)
            self.gate_up_proj = torch.nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
            self.down_proj = torch.nn.Linear(intermediate_size, hidden_size, bias=False)

    with fastkernels.patch(llama, {"linear": Linear, "gated_mlp": Alone}) as p:
        logits(llama, ids)
        sites = {s.path: s for s in p.report.sites}
        shadowed = sites["model.layers.0.mlp.up_proj"]
        assert shadowed.state == "shadowed" and "gated_mlp at model.layers.0.mlp" in shadowed.reason
        assert sites["model.layers.0.self_attn.q_proj"].state == "applied"
        assert sites["model.layers.0.mlp.up_proj"].inside == "model.layers.0.mlp"


def test_fused_add_rms_norm_is_carried_by_the_whole_model(llama, ids):
    class Fused(FusedAddRMSNorm):
        calls = 0

        def forward(self, x, residual):
            Fused.calls += 1
            return super().forward(x, residual)

    want = logits(llama, ids)
    with fastkernels.patch(llama, {"fused_add_rms_norm": Fused, "gated_mlp": MyMLP}) as p:
        Fused.calls = 0
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
        assert Fused.calls == 2
        assert {(s.path, s.task) for s in p.report.applied if s.inside is None} == {("", "causal_lm")}
        mlp = next(s for s in p.report.sites if s.path == "model.layers.0.mlp")
        assert mlp.state == "applied" and mlp.inside == "" and mlp.calls == 1


@torch.no_grad()
def test_calls_that_a_whole_model_leaves_to_the_original_run_in_its_patched_layers(llama, ids):
    class Fused(FusedAddRMSNorm):
        pass

    want = llama(ids, output_hidden_states=True)
    with fastkernels.patch(llama, {"fused_add_rms_norm": Fused, "gated_mlp": MyMLP}) as p:
        got = llama(ids, output_hidden_states=True)
        sites = {s.path: s for s in p.report.sites if s.level > 1}
        assert sites[""].calls == 0 and sum(sites[""].bypassed.values()) == 1
        assert sites["model.layers.1.mlp"].calls == 1
        llama(ids)  # the hooks that recorded are still there, and idle
        assert p.report.sites[-1].calls == 1 and p.report.sites[-1].bypassed == sites[""].bypassed
    assert len(got.hidden_states) == len(want.hidden_states)
    torch.testing.assert_close(got.hidden_states, want.hidden_states, rtol=1e-4, atol=1e-5)


def test_select_limits_the_sites_by_path_and_task(llama):
    with fastkernels.patch(llama, "reference", select=["model.layers.0.*:rms_norm", "lm_head"]) as p:
        assert {s.path for s in p.report.applied} == {
            "model.layers.0.input_layernorm",
            "model.layers.0.post_attention_layernorm",
            "lm_head",
        }


def test_every_site_and_candidate_ends_in_a_terminal_state(llama):
    terminal = {"applied", "gated", "shadowed", "unmatched", "refused"}
    with fastkernels.patch(llama, "shipped") as p:
        report = p.report
        assert {s.state for s in report.sites} <= terminal and {c.state for c in report.candidates} <= terminal
        assert all(s.reason for s in report.sites if s.state != "applied")
        assert type(report).model_validate_json(report.model_dump_json()) == report


def test_what_a_copy_runs_is_not_counted_for_the_model_that_is_patched(llama, ids):
    with fastkernels.patch(llama, {"silu_and_mul": MySilu}) as p:
        twin = copy.deepcopy(llama)
        logits(twin, ids)
        assert [c.calls for c in p.report.candidates] == [0]
        logits(llama, ids)
        assert [c.calls for c in p.report.candidates] == [2]


def test_each_candidate_has_the_buffers_it_writes_to_for_itself(llama, ids):
    class Counting(OpaqueMLP):
        def __init__(self, hidden_size, intermediate_size, hidden_act="silu", *, bias=False):
            super().__init__(hidden_size, intermediate_size, hidden_act, bias=bias)
            self.register_buffer("seen", torch.zeros(1), persistent=False)
            self.register_buffer("alias", self.seen, persistent=False)

        def forward(self, x):
            self.seen.add_(1)
            return super().forward(x)

    class Fused(FusedAddRMSNorm):
        pass

    with fastkernels.patch(llama, {"gated_mlp": Counting, "fused_add_rms_norm": Fused}, verify=False) as p:
        first, second = (layer.mlp for layer in p.dispatchers[""].implementation.model.layers)
        before = second.seen.item()
        first(torch.zeros(1, 1, 64))
        assert second.seen.item() == before
        assert first.seen is first.alias


def test_references_share_the_tables_that_equal_calls_build():
    with torch.device("meta"):
        host = torch.nn.ModuleList(RotaryEmbedding(8, 8, 32, 10000.0) for _ in range(2))
    materialise_buffers(host, torch.device("cpu"))
    assert host[0].cos_sin_cache is host[1].cos_sin_cache
    torch.testing.assert_close(host[0].cos_sin_cache, RotaryEmbedding(8, 8, 32, 10000.0).cos_sin_cache)


def test_parts_built_from_tensors_that_print_alike_have_their_own():
    class Table(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.constructed_with = ((values,), {})
            self.register_buffer("doubled", torch.empty(values.shape) if values.is_meta else 2 * values)

    values = [torch.zeros(5000), torch.zeros(5000)]
    values[1][2500] = 1
    with torch.device("meta"):
        host = torch.nn.ModuleList(Table(torch.empty(5000)) for _ in values)
    for part, given in zip(host, values, strict=True):
        part.constructed_with = ((given,), {})
    materialise_buffers(host, torch.device("cpu"))
    assert [part.doubled.sum().item() for part in host] == [0, 2]
