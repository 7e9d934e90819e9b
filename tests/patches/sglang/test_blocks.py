"""Attention blocks and decoder layers of a loaded SGLang: candidates around its RadixAttention and paged cache."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import fastkernels
from fastkernels.errors import PatchError
from fastkernels.patches.sglang.bypass import boundaries
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2.served_attention import CountsFromZero, ServedAttention
from fastkernels.tasks.L3.served_layer import ForgetsTheResidual, ServedDecoderLayer
from tests.patches.sglang.conftest import STEPS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
LAYERS = 2
COMMUNICATES = re.compile("its (LayerCommunicator|boundaries) ")  # the latter since 0.5.23


class Block(ServedAttention):
    pass


class Layer(ServedDecoderLayer):
    pass


class Norm(RMSNorm):
    pass


def of(*names):
    return pytest.mark.parametrize("engine", names, indirect=True)


def sites(handle, task):
    return {s.path: s for s in handle.report.sites if s.task == task}


def need_whole_layers(engine):
    """Skips where a version's layers hand the residual on by themselves: they are gated."""
    if boundaries(engine.model.model.layers[0]):
        pytest.skip("this version's layers have boundaries")


def assert_same(engine):
    tokens, logits = engine.generate()
    torch.testing.assert_close(logits, engine.logits, rtol=0, atol=1e-4)
    assert tokens == engine.tokens


@of("llama", "qwen3", "mixtral")
def test_attention_blocks_give_the_same_tokens_in_prefill_and_decode(engine):
    with fastkernels.patch(engine.model, {"served_attention": Block}) as handle:
        assert_same(engine)
    found = sites(handle, "served_attention").values()
    assert [(s.state, s.calls, s.bypassed) for s in found] == [("applied", STEPS, {})] * LAYERS
    assert all(s.evidence == "class; attention stood in for in probes" for s in found)
    assert not any("forward" in m.__dict__ for m in engine.model.modules())


@of("llama")
def test_decoder_layers_give_the_same_tokens_with_a_norm_inside(engine):
    need_whole_layers(engine)
    with fastkernels.patch(engine.model, {"served_layer": Layer, "rms_norm": Norm}) as handle:
        assert_same(engine)
        norms = sites(handle, "rms_norm")
    found = sites(handle, "served_layer").values()
    assert [(s.state, s.calls, s.bypassed) for s in found] == [("applied", STEPS, {})] * LAYERS
    assert Counter(s.inside for s in norms.values()) == {"model.layers.0": 2, "model.layers.1": 2, None: 1}
    assert all(s.calls == STEPS for s in norms.values())


@of("qwen3")
def test_a_layer_that_communicates_by_itself_is_gated_and_its_block_is_patched(engine):
    with fastkernels.patch(engine.model, {"served_layer": Layer, "served_attention": Block, "rms_norm": Norm}) as p:
        assert_same(engine)
        layers, blocks, norms = (sites(p, task) for task in ("served_layer", "served_attention", "rms_norm"))
    assert all(s.state == "gated" and COMMUNICATES.search(s.reason) for s in layers.values())
    assert [(s.state, s.calls) for s in blocks.values()] == [("applied", STEPS)] * LAYERS
    inside = norms["model.layers.0.self_attn.q_norm"]
    assert (inside.inside, inside.calls) == ("model.layers.0.self_attn", STEPS)


@of("llama")
@pytest.mark.parametrize(
    ("task", "wrong"), [("served_attention", CountsFromZero), ("served_layer", ForgetsTheResidual)]
)
def test_a_wrong_candidate_is_refused_and_without_verification_the_tokens_show_it(engine, task, wrong):
    if task == "served_layer":
        need_whole_layers(engine)
    with pytest.raises(PatchError, match=rf"{wrong.__name__} is off by"):
        fastkernels.patch(engine.model, {task: wrong})
    with fastkernels.patch(engine.model, {task: wrong}, verify=False):
        assert engine.generate()[0] != engine.tokens
    assert_same(engine)


@of("llama")
def test_a_layer_with_boundaries_is_gated(engine, monkeypatch):
    """As since 0.5.23, whose layers are told no residual."""
    layer = engine.model.model.layers[0]
    monkeypatch.setitem(vars(layer), "attn_boundary", SimpleNamespace(fusions=None))
    plan = fastkernels.plan(engine.model, {"served_layer": Layer})
    (site,) = (s for s in plan.sites if (s.path, s.task) == ("model.layers.0", "served_layer"))
    assert site.state == "gated" and "its boundaries" in site.reason


@of("mixtral")
def test_a_mixture_of_experts_has_no_layer_site(engine):
    with fastkernels.patch(engine.model, {"served_layer": Layer, "served_attention": Block}) as handle:
        assert {s.task for s in handle.report.applied} == {"served_attention"}
        assert not sites(handle, "served_layer")
