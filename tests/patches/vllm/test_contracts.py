"""A real vLLM engine: what its modules promise to their callers holds for a candidate in their place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fastkernels.patches.recognise import recognise
from fastkernels.patches.vllm import ADAPTERS
from tests.engines.offline_vllm import Offline
from tests.patches.vllm.engines import patched, tiny_engine

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    with tiny_engine("llama", tmp_path_factory.mktemp("llama")) as engine:
        yield engine


class DropsTheResult(nn.Module):
    """An attention that relies on its rope to work in place."""

    def __init__(self, rotary_emb: nn.Module) -> None:
        super().__init__()
        self.rotary_emb = rotary_emb

    def forward(self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        self.rotary_emb(positions, query, key)
        return query @ key.T


def test_a_rope_candidate_returns_new_tensors_where_the_engine_turns_in_place(llama: Offline) -> None:
    rope = llama.model.get_submodule("model.layers.0.self_attn.rotary_emb")
    positions, query, key = torch.arange(6), torch.randn(6, 128), torch.randn(6, 64)
    turned, turned_key = query.clone(), key.clone()
    rope(positions, turned, turned_key)
    assert not torch.equal(turned, query)
    with patched(llama), torch.no_grad():
        given, given_key = query.clone(), key.clone()
        out, out_key = rope(positions, given, given_key)
        assert rope.__dict__["forward"].calls == 1
    assert torch.equal(given, query) and torch.equal(given_key, key)
    torch.testing.assert_close(out, turned)
    torch.testing.assert_close(out_key, turned_key)


def test_a_rope_whose_owner_drops_the_result_is_gated(llama: Offline) -> None:
    careless = DropsTheResult(llama.model.get_submodule("model.layers.0.self_attn.rotary_emb"))
    site = next(s for s in recognise(careless, ADAPTERS).sites if s.task.name == "rotary_emb")
    assert "in place" in site.proposal.gated


def test_a_rope_call_of_another_shape_stays_with_the_engine(llama: Offline) -> None:
    rope = llama.model.get_submodule("model.layers.0.self_attn.rotary_emb")
    positions, query, key = torch.arange(6), torch.randn(6, 4, 32), torch.randn(6, 2, 32)
    want = rope(positions, query.clone(), key.clone())
    with patched(llama), torch.no_grad():
        got = rope(positions, query.clone(), key.clone())
        assert rope.__dict__["forward"].calls == 0
    torch.testing.assert_close(got, want)


def test_a_norm_with_a_residual_returns_both_and_leaves_its_arguments_alone(llama: Offline) -> None:
    norm = llama.model.get_submodule("model.layers.0.post_attention_layernorm")
    x, residual = torch.randn(5, 128), torch.randn(5, 128)
    want, want_residual = norm(x.clone(), residual.clone())
    with patched(llama), torch.no_grad():
        given, given_residual = x.clone(), residual.clone()
        out, new_residual = norm(given, residual=given_residual)
        assert norm.__dict__["forward"].calls == 1
    assert torch.equal(given, x) and torch.equal(given_residual, residual)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(new_residual, want_residual)


def test_a_linear_returns_the_pair_that_its_callers_unpack(llama: Offline) -> None:
    layer = llama.model.get_submodule("model.layers.0.self_attn.qkv_proj")
    x = torch.randn(5, 128)
    want, _ = layer(x)
    with patched(llama), torch.no_grad():
        out, bias = layer(x)
        assert layer.__dict__["forward"].calls == 1
    assert bias is None
    torch.testing.assert_close(out, want)


def test_the_instance_forward_wins_over_the_custom_op_s_dispatch(llama: Offline) -> None:
    act = llama.model.get_submodule("model.layers.0.mlp.act_fn")
    with patched(llama, select="*.act_fn"), torch.no_grad():
        act(torch.randn(3, 512))
        assert act.__dict__["forward"].calls == 1
    assert "forward" not in act.__dict__


def test_ids_in_int32_are_looked_up_through_the_candidate(llama: Offline) -> None:
    embedding = llama.model.get_submodule("model.embed_tokens")
    ids = torch.tensor([3, 319, 0], dtype=torch.int32)
    want = embedding(ids)
    with patched(llama), torch.no_grad():
        assert torch.equal(embedding(ids), want)
        assert embedding.__dict__["forward"].calls == 1


def test_the_logits_of_a_patched_head_are_the_engine_s(llama: Offline) -> None:
    hidden = torch.randn(4, 128)
    want = llama.model.compute_logits(hidden)  # type: ignore[operator] # a method
    with patched(llama), torch.no_grad():
        got = llama.model.compute_logits(hidden)  # type: ignore[operator] # a method
        assert llama.model.__dict__["compute_logits"].calls == 1
    torch.testing.assert_close(got, want)
