"""Captures of live transformers models."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

import fastkernels
from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.capture import capture
from fastkernels.evaluation.capture.store import load_capture, value_of
from tests.evaluation.capture.tiny import generate, llama, mixtral, prompt

STEPS = 4


@pytest.fixture(scope="module")
def model():
    return mixtral()


@pytest.fixture(scope="module")
def sampled(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    with capture(model, values="sampled", out=folder):
        generate(model, prompt(), STEPS)
    return load_capture(folder)


def slots(model):
    return {path: dict(part.__dict__) for path, part in model.named_modules()}


def hooks(model):
    return [(path, len(part._forward_hooks) + len(part._forward_pre_hooks)) for path, part in model.named_modules()]


def test_nothing_stays_on_the_model(model):
    before, hooked = slots(model), hooks(model)
    with capture(model, values="all") as c:
        generate(model, prompt(), 2)
    assert c.result.samples
    after = slots(model)
    assert hooks(model) == hooked
    for path, held in before.items():
        assert held.keys() == after[path].keys()
        assert all(after[path][name] is value for name, value in held.items())


def test_nothing_stays_after_an_error(model):
    before = slots(model)
    with pytest.raises(ZeroDivisionError), capture(model):
        raise ZeroDivisionError
    assert all(slots(model)[path].keys() == held.keys() for path, held in before.items())


def test_a_capture_changes_no_output(model):
    alone = generate(model, prompt(), STEPS)
    with capture(model, values="sampled"):
        within = generate(model, prompt(), STEPS)
    assert torch.equal(alone, within)


def test_calls_are_counted_by_phase(sampled):
    wanted = Counter(prefill=1, decode=STEPS - 1)
    assert Counter(sampled.root_calls) == wanted
    for site in sampled.sites:
        assert site.calls == wanted, site.path


def test_facts_shapes_and_strides_are_those_of_the_interface(sampled):
    experts = sampled.site("model.layers.0.mlp.experts")
    assert experts.task == "fused_experts"
    assert experts.facts["num_experts"] == 4
    prefill = next(v for v in experts.variants if "prefill" in v.calls)
    assert list(prefill.arguments) == ["hidden_states", "topk_weights", "topk_ids"]
    assert prefill.arguments["topk_ids"].dtype == "int64"
    act = sampled.site("model.layers.0.mlp.experts.act_fn")
    assert act.variants[0].arguments["x"].stride == (96, 1)  # half of gate and up


def test_sampled_values_are_those_of_the_call(model):
    seen = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with capture(model, values="all") as c:
        generate(model, prompt(), STEPS)
    hook.remove()
    store = {s.values["x"] for s in c.result.samples if s.path == "model.norm"}
    from fastkernels.evaluation.capture.values import content_of

    assert store == {content_of(x.contiguous()) for x in seen}


def test_integers_alone_are_kept_where_integers_are_asked_for(model, tmp_path):
    with capture(model, values="integers", out=tmp_path):
        generate(model, prompt(), STEPS)
    found = load_capture(tmp_path)
    values = [value_of(found, key) for s in found.samples for key in s.values.values()]
    assert values
    assert not any(v.is_floating_point() for v in values)


def test_equal_contents_are_stored_once(tmp_path):
    model = llama(num_hidden_layers=1)
    x = torch.ones(1, 3, 32)
    with capture(model.model.layers[0].mlp, values="all", out=tmp_path), torch.no_grad():
        for _ in range(5):
            model.model.layers[0].mlp(x)
    found = load_capture(tmp_path)
    assert len([s for s in found.samples if not s.path]) == 5
    assert len({s.values["x"] for s in found.samples if not s.path}) == 1


def test_a_reservoir_keeps_few_of_many_and_not_only_the_first(model):
    with capture(model, values="sampled", per_kind=2) as c:
        for seed in range(12):
            with torch.no_grad():
                model(prompt(seed=seed), use_cache=False)
    kept = [s for s in c.result.samples if s.path == "lm_head"]
    assert len(kept) == 2
    first = capture(model, values="sampled", per_kind=2)
    with first, torch.no_grad():
        for seed in range(2):
            model(prompt(seed=seed), use_cache=False)
    former = {s.values["x"] for s in first.result.samples if s.path == "lm_head"}
    assert {s.values["x"] for s in kept} != former


def test_values_stay_within_their_bytes(model, tmp_path):
    most = 4096
    with capture(model, values="all", max_bytes=most, out=tmp_path):
        generate(model, prompt(), STEPS)
    found = load_capture(tmp_path)
    assert 0 < found.stored_bytes <= most
    assert found.dropped > 0
    held = {key for s in found.samples for key in s.values.values()}
    assert sum(value_of(found, key).nbytes for key in held) == found.stored_bytes


def test_prompts_are_stored_only_when_asked(model, tmp_path):
    ids = prompt()
    rows = model.model.embed_tokens.weight.detach()[ids]
    normed = model.model.layers[0].input_layernorm(rows).detach()
    for prompts in (False, True):
        with capture(model, values="all", prompts=prompts, out=tmp_path / str(prompts)):
            generate(model, ids, 1)
        found = load_capture(tmp_path / str(prompts))
        stored = [value_of(found, key) for s in found.samples for key in s.values.values()]
        assert (
            any(v.numel() == ids.numel() and torch.equal(v.flatten().long(), ids.flatten()) for v in stored) is prompts
        )
        for secret in (rows, normed):  # each row is a function of its token
            assert any(v.shape == secret.shape and torch.equal(v, secret) for v in stored) is prompts
        paths = {s.path for s in found.samples}
        assert "model.layers.1.post_attention_layernorm" in paths
        # Beside its attention the first layer still has rows of the embedding: the residual.
        assert ("model.layers.0.post_attention_layernorm" in paths) is prompts
        assert bool(found.withheld) is not prompts


def test_compiled_models_are_captured_eagerly():
    model = llama(num_hidden_layers=1)
    compiled = torch.compile(model, backend="eager", dynamic=False)
    with torch.no_grad():
        compiled(prompt(), use_cache=False)
        with capture(compiled) as c:
            compiled(prompt(), use_cache=False)
    assert c.result.site("model.norm").calls == Counter(prefill=1)


@pytest.mark.slow
def test_a_graph_pass_of_the_same_calls_agrees():
    model = llama(num_hidden_layers=1)
    with capture(model) as c, torch.no_grad():
        model(prompt(), use_cache=False, attention_mask=torch.ones(2, 5))
        check = c.check_graph(lambda: model(prompt(), use_cache=False, attention_mask=torch.ones(2, 5)))
    inner = [d for d in check.differences if not d.startswith(("attention_block", "decoder_layer", "causal_lm"))]
    assert check.passed is not None
    assert inner == []


def test_a_graph_pass_of_other_shapes_is_told():
    model = llama(num_hidden_layers=1).model.layers[0].mlp
    before = slots(model)
    with capture(model) as c, torch.no_grad():
        model(torch.ones(1, 3, 32))
        same = c.check_graph(lambda: model(torch.ones(1, 3, 32)))
        other = c.check_graph(lambda: model(torch.ones(1, 4, 32)))
    assert all(slots(model)[path].keys() == held.keys() for path, held in before.items())
    assert same.passed is True
    assert other.passed is False
    assert any("gated_mlp: only in graphs: (1, 4, 32)" in d for d in other.differences)
    assert any("gated_mlp: only eager: (1, 3, 32)" in d for d in other.differences)


def test_a_patched_model_is_refused():
    model = llama(num_hidden_layers=1)
    refused = pytest.raises(EvaluationError, match="unpatch")
    with fastkernels.patch(model, "reference", select="*norm*"), refused, capture(model):
        pass
    with capture(model) as c, torch.no_grad():
        model(prompt())
    assert c.result.root_calls


def test_a_model_without_sites_is_refused():
    with pytest.raises(EvaluationError, match="nothing to capture"), capture(nn.Sequential(nn.Dropout())):
        pass


def test_a_copy_made_within_does_not_record(model):
    with capture(model) as c:
        clone = copy.deepcopy(model)
        with torch.no_grad():
            clone(prompt())
    assert not c.result.root_calls
