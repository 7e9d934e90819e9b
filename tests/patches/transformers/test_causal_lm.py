"""Whole language models as one site: calls of every kind, and the ones that stay with the original."""

import sys
import threading

import pytest
import torch
import transformers

import fastkernels
from fastkernels.patches.recognise import recognise
from fastkernels.patches.stand_in import stand_in
from fastkernels.patches.transformers import ADAPTERS
from fastkernels.patches.transformers.rope import Halves
from fastkernels.tasks.L4.causal_lm import LlamaForCausalLM, SkipsTheLastLayer

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 120,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma": {},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5},
    "granite": {"embedding_multiplier": 7.0, "logits_scaling": 3.0, "residual_multiplier": 1.0},
    "olmo2": {},
    "olmo3": {"sliding_window": 5},
    "phi3": {},
    "stablelm": {"partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": 5},
}


# Eager attention as well where masks are more than causal; Gemma 2 has no other in some versions of the host.
READINGS = [(name, "sdpa") for name in TYPES if name != "gemma2"]
READINGS += [(name, "eager") for name in ("llama", "mistral", "gemma2", "gemma3_text")]


def build(name: str, attention: str | None = None) -> transformers.PreTrainedModel:
    attention = attention or ("eager" if name == "gemma2" else "sdpa")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **SHAPE, **TYPES[name])
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def site(handle: fastkernels.Patch) -> fastkernels.patches.report.SiteReport:
    return next(s for s in handle.report.sites if s.task == "causal_lm")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 120, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "attention"), READINGS)
@torch.no_grad()
def test_logits_and_generated_tokens_are_the_models_own(name, attention, ids):
    model = build(name, attention)
    padding = torch.ones_like(ids)
    padding[0, :4] = 0
    generate = {"max_new_tokens": 6, "do_sample": False, "attention_mask": padding}
    want, tokens = model(ids, attention_mask=padding).logits, model.generate(ids, **generate)
    static = model.generate(ids, **generate, cache_implementation="static", disable_compile=True)
    with fastkernels.patch(model, "reference") as p:
        got = model(ids, attention_mask=padding).logits
        torch.testing.assert_close(got[padding.bool()], want[padding.bool()], rtol=1e-4, atol=1e-5)
        assert torch.equal(model.generate(ids, **generate), tokens)
        assert torch.equal(model.generate(ids, **generate, cache_implementation="static", disable_compile=True), static)
        assert site(p).calls == 13 and not site(p).bypassed


@torch.no_grad()
def test_every_form_of_call_gives_the_hosts_output(ids):
    model = build("llama")
    positions = torch.arange(13)[None] + 3
    calls = [
        {"labels": ids},
        {"logits_to_keep": 2},
        {"logits_to_keep": torch.tensor([1, 5])},
        {"position_ids": positions, "use_cache": False},
        {"return_dict": False},
        {"output_hidden_states": False, "inputs_embeds": None},
    ]
    want = [model(ids, **call) for call in calls]
    with fastkernels.patch(model, "reference") as p:
        for call, wanted in zip(calls, want, strict=True):
            got = model(ids, **call)
            assert type(got) is type(wanted)
            assert len(got) == len(wanted)
            if isinstance(got, tuple):
                torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)
                continue
            torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-4, atol=1e-5)
            assert (got.loss is None) == (wanted.loss is None)
            if got.loss is not None:
                torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-4, atol=1e-5)
            assert (got.past_key_values is None) == (wanted.past_key_values is None)
        assert site(p).calls == len(calls)


@torch.no_grad()
def test_calls_with_no_counterpart_go_to_the_original_with_the_reason(ids):
    model = build("llama")
    embedded = model.model.embed_tokens(ids)
    calls = [
        {"inputs_embeds": embedded},
        {"input_ids": ids, "output_hidden_states": True},
        {"input_ids": ids, "past_key_values": transformers.DynamicCache(), "use_cache": False},
    ]
    want = [model(**call).logits for call in calls]
    calls[2]["past_key_values"] = transformers.DynamicCache()
    with fastkernels.patch(model, "reference") as p:
        for call, wanted in zip(calls, want, strict=True):
            torch.testing.assert_close(model(**call).logits, wanted, rtol=1e-4, atol=1e-5)
        report = site(p)
        assert report.calls == 0 and sum(report.bypassed.values()) == len(calls)
        text = " ".join(report.bypassed)
        assert "input_ids" in text and "output_hidden_states" in text and "use_cache is off" in text
        layers = [s for s in p.report.sites if s.task == "decoder_layer"]
        assert all(s.calls == len(calls) for s in layers), "the layers beneath serve these calls"


@torch.no_grad()
def test_a_wrong_model_is_refused_and_a_right_one_runs(ids):
    model = build("llama")
    with pytest.raises(fastkernels.PatchError, match=r"\(model\) \(LlamaForCausalLM\).*off by"):
        fastkernels.patch(model, {"causal_lm": SkipsTheLastLayer})
    assert "forward" not in model.__dict__

    class Mine(LlamaForCausalLM):
        pass

    want = model(ids).logits
    with fastkernels.patch(model, {"causal_lm": Mine}) as p:
        torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=1e-5)
        assert site(p).calls == 1


@torch.no_grad()
def test_a_layer_replaced_or_changed_after_patching_is_not_passed_over(ids):
    model, other = build("llama"), build("llama")
    with fastkernels.patch(model, "reference") as p:
        for m in (model, other):
            m.model.layers[1].mlp = torch.nn.Identity()
        torch.testing.assert_close(model(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)
        assert site(p).calls == 0
    with fastkernels.patch(other, "reference") as p:
        want = other(ids).logits
        other.model.norm.weight.data = other.model.norm.weight.data * 2
        assert not torch.allclose(other(ids).logits, want)


def test_models_whose_kinds_of_layers_differ_keep_each_kind(ids):
    handle = fastkernels.patch(build("gemma2"), "reference")
    facts = handle.dispatchers[""].proposal.facts
    assert len(facts["layers"]) == 2 and facts["kinds"] == (0, 1, 0, 1)
    assert facts["logits_soft_cap"] == 30.0 and facts["embed_scale_rounded"]


def test_a_stand_in_shares_tensors_and_leaves_the_original_alone():
    model = build("gemma2")
    copy = stand_in(model)
    assert type(copy) is type(model) and copy is not model
    assert all(a is b for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    model.model.layers[0].register_forward_hook(lambda *a: None)
    assert not copy.model.layers[0]._forward_hooks
    found = next(s for s in recognise(build("gemma2"), ADAPTERS).sites if s.task.name == "causal_lm")
    small = found.proposal.stand_in(found.module)
    assert len(small.model.layers) == 2 and small.config.num_hidden_layers == 2
    assert found.module.config.num_hidden_layers == 4 and len(found.module.model.layers) == 4


def set_epsilon(model):
    model.model.layers[2].input_layernorm.variance_epsilon = 0.3


def set_scaling(model):
    model.model.layers[1].self_attn.scaling = 0.7


def set_causal(model):
    model.config.is_causal = False


def set_layer_type(model):
    model.config.layer_types[0] = "full_attention"


def set_residual_multiplier(model):
    model.model.layers[0].residual_multiplier = 0.3


def set_softcap(model):
    model.model.layers[0].self_attn.attn_logit_softcapping = 0.01


CHANGES = [
    ("llama", set_epsilon),
    ("llama", set_scaling),
    ("llama", set_causal),
    ("gemma2", set_layer_type),
    ("gemma2", set_softcap),
    ("granite", set_residual_multiplier),
]


@pytest.mark.parametrize("select", ["all", "model.layers.*"], ids=["whole", "by layer"])
@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[f"{n}-{c.__name__}" for n, c in CHANGES])
@torch.no_grad()
def test_a_number_or_a_switch_changed_after_patching_is_the_models_own(name, change, select, ids):
    model, twin = build(name), build(name)
    fastkernels.patch(model, "reference", select=select)
    model(ids)
    for m in (model, twin):
        change(m)
    torch.testing.assert_close(model(ids).logits, twin(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_the_host_notes_on_its_modules_does_not_end_a_patch(ids):
    model = build("llama")
    handle = fastkernels.patch(model, "reference")
    model(ids, output_hidden_states=True)
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        model(ids)
    assert site(handle).calls == 2


@torch.no_grad()
def test_threads_with_tables_of_their_own_do_not_get_each_others():
    halves = Halves("cat")
    wrong: list[int] = []

    def turn(value: int) -> None:
        for _ in range(4000):
            tables = (torch.full((1, 1, 4), float(value)), torch.zeros(1, 1, 4))
            if halves(tables)[0][0, 0, 0] != value:
                wrong.append(value)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=turn, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
