"""The contract of patch and unpatch: what must survive on the model, whatever users do around it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import fastkernels
from fastkernels import PatchError
from fastkernels.patches.dispatch import dispatchers
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from tests.conftest import tiny_llama

BASE = lambda site: site.task.level <= 2  # noqa: E731 - the sites that keep the layers' own modules in place


class CountingNorm(RMSNorm):
    """A right candidate that can be seen at work."""

    calls = 0

    def forward(self, x, residual=None):
        type(self).calls += 1
        return super().forward(x, residual)


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def snapshot(model: nn.Module) -> dict[str, dict[str, object]]:
    """Every module's ``__dict__`` one level deep, containers copied, so that a later change shows."""
    return {
        name: {k: (dict(v) if isinstance(v, dict) else v) for k, v in vars(module).items()}
        for name, module in model.named_modules()
    }


def equal(now: object, was: object) -> bool:
    """Equality that looks into tensors: some models keep a tensor of their last call as an attribute."""
    if isinstance(now, torch.Tensor) and isinstance(was, torch.Tensor):
        return torch.equal(now, was)
    return bool(now == was)


def assert_same_dicts(before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]) -> None:
    assert before.keys() == after.keys()
    for name, was in before.items():
        now = after[name]
        assert was.keys() == now.keys(), (name, was.keys() ^ now.keys())
        for key, value in was.items():
            if isinstance(value, dict):
                assert value.keys() == now[key].keys()
                assert all(now[key][k] is v for k, v in value.items()), (name, key)
            else:
                assert now[key] is value or equal(now[key], value), (name, key)


@pytest.mark.parametrize("source", ["reference", "identity", "shipped"])
def test_unpatch_restores_dicts_state_and_outputs_exactly(llama, ids, source):
    bystander = tiny_llama()
    before, values = snapshot(llama), {k: v.clone() for k, v in llama.state_dict().items()}
    want = logits(llama, ids)
    handle = fastkernels.patch(llama, source)
    torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
    assert sum(d.calls for d in handle.dispatchers.values()) > 0
    assert not list(dispatchers(bystander)) and torch.equal(logits(bystander, ids), want)
    handle.unpatch()
    handle.unpatch()
    assert_same_dicts(before, snapshot(llama))
    assert all(torch.equal(v, values[k]) for k, v in llama.state_dict().items())
    assert torch.equal(logits(llama, ids), want)
    storages = {p.untyped_storage().data_ptr() for p in llama.parameters()}
    assert len(storages) == len(list(llama.parameters()))


def test_classes_and_module_globals_are_never_written(llama, ids):
    from transformers.models.llama import modeling_llama as m

    names = (m.LlamaRMSNorm.forward, m.LlamaMLP.forward, m.LlamaAttention.forward, m.apply_rotary_pos_emb)
    with fastkernels.patch(llama, "reference"):
        logits(llama, ids)
        assert names == (m.LlamaRMSNorm.forward, m.LlamaMLP.forward, m.LlamaAttention.forward, m.apply_rotary_pos_emb)
        assert isinstance(llama.model.layers[0].mlp, m.LlamaMLP)


def test_parameters_keep_identity_names_and_values_while_patched(llama):
    before = {n: (p, p.detach().clone()) for n, p in llama.named_parameters()}
    with fastkernels.patch(llama, "reference"):
        now = dict(llama.named_parameters())
        assert now.keys() == before.keys()
        assert all(now[n] is p and torch.equal(p, value) for n, (p, value) in before.items())


def test_state_dict_round_trips_while_patched(llama, ids):
    other = tiny_llama(hidden_act="silu")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    want = logits(other, ids)
    with fastkernels.patch(llama, "reference"):
        llama.load_state_dict(other.state_dict())
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
        llama.load_state_dict({k: v.clone() * 0.5 for k, v in other.state_dict().items()}, assign=True)
        expected = tiny_llama()
        expected.load_state_dict(llama.state_dict())
        torch.testing.assert_close(logits(llama, ids), logits(expected, ids), rtol=1e-4, atol=1e-5)


def test_hooks_on_a_patched_module_fire_and_hooks_inside_send_the_call_to_the_original(llama, ids):
    seen = []
    with fastkernels.patch(llama, "reference", select=BASE) as p:
        outer = llama.model.layers[0].mlp.register_forward_hook(lambda m, a, o: seen.append("mlp"))
        inner = llama.model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, a, o: seen.append("gate"))
        want = logits(llama, ids)
        assert seen == ["gate", "mlp"]
        dispatcher = p.dispatchers["model.layers.0.mlp"]
        assert dispatcher.calls == 0 and "gate_proj" in next(iter(dispatcher.bypassed))
        inner.remove()
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
        assert dispatcher.calls == 1 and seen[-1] == "mlp"
        outer.remove()


def test_recorded_hidden_states_and_attentions_are_the_unpatched_ones(llama, ids):
    llama.set_attn_implementation("eager")
    with torch.no_grad():
        want = llama(ids, output_hidden_states=True, output_attentions=True)
        with fastkernels.patch(llama, "reference", on_miss="report"):
            got = llama(ids, output_hidden_states=True, output_attentions=True)
    assert len(got.attentions) == len(want.attentions) == 2
    for g, w in zip((*got.hidden_states, *got.attentions), (*want.hidden_states, *want.attentions), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_tied_weights_stay_tied(ids):
    model = tiny_llama(tie_word_embeddings=True)
    want = logits(model, ids)
    with fastkernels.patch(model, "reference"):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(2.0)
        changed = logits(model, ids)
    torch.testing.assert_close(changed, logits(model, ids), rtol=1e-4, atol=1e-5)


def test_a_module_in_two_places_is_one_site(ids):
    model = tiny_llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    want = logits(model, ids)
    with fastkernels.patch(model, "reference", select=BASE) as p:
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)
        assert [s.path for s in p.report.sites if s.task == "gated_mlp"] == ["model.layers.0.mlp"]
        assert p.dispatchers["model.layers.0.mlp"].calls == 2


def test_weights_that_share_storage_are_not_moved(llama, ids):
    mlp = llama.model.layers[0].mlp
    both = torch.cat((mlp.up_proj.weight.data, mlp.gate_proj.weight.data))
    mlp.up_proj.weight.data, mlp.gate_proj.weight.data = both[:176], both[176:]  # the other way round than wanted
    with fastkernels.patch(llama, {"gated_mlp": LlamaMLP}) as p:
        states = {s.path: (s.state, s.reason) for s in p.report.sites if s.task == "gated_mlp"}
        assert states["model.layers.0.mlp"][0] == "gated" and "shares its storage" in states["model.layers.0.mlp"][1]
        assert states["model.layers.1.mlp"][0] == "applied"
        assert mlp.up_proj.weight.data_ptr() == both.data_ptr()


def test_deepcopy_computes_with_its_own_weights_and_leaves_the_source_alone(llama, ids):
    want = logits(llama, ids)
    with fastkernels.patch(llama, "reference") as p:
        twin = copy.deepcopy(llama)
        with torch.no_grad():
            for q in twin.parameters():
                q.mul_(1.25)
        expected = tiny_llama()
        expected.load_state_dict(twin.state_dict())
        calls = sum(d.calls for d in p.dispatchers.values())
        torch.testing.assert_close(logits(twin, ids), logits(expected, ids), rtol=1e-4, atol=1e-5)
        assert sum(d.calls for d in p.dispatchers.values()) == calls
        assert sum(d.calls for _, d in dispatchers(twin)) > 0
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(twin, ids), logits(expected, ids), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(llama, ids), want)


def test_a_patched_model_pickles_and_loads_as_the_original(llama, ids):
    want = logits(llama, ids)
    with fastkernels.patch(llama, "reference"):
        buffer = io.BytesIO()
        torch.save(llama, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert not list(dispatchers(loaded))
    torch.testing.assert_close(logits(loaded, ids), want, rtol=0, atol=0)


def test_save_pretrained_while_patched_writes_the_same_weights(llama, ids, tmp_path):
    from transformers import AutoModelForCausalLM

    want = logits(llama, ids)
    with fastkernels.patch(llama, "reference"):
        llama.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, ids), want, rtol=0, atol=0)


def test_to_dtype_after_patching_runs_the_candidate_in_the_new_dtype(llama, ids):
    twin = tiny_llama().to(torch.bfloat16)
    want = logits(twin, ids)
    with fastkernels.patch(llama, "reference") as p:
        llama.to(torch.bfloat16)
        before = {k: d.calls for k, d in p.dispatchers.items()}
        got = logits(llama, ids)
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
        assert all(d.calls == before[k] + 1 for k, d in p.dispatchers.items()), p.report.model_dump_json(indent=1)
    assert torch.equal(logits(llama, ids), want)


def test_a_candidate_that_does_not_support_the_new_dtype_is_gated_there(llama, ids):
    @fastkernels.candidate("rms_norm", dtypes=(torch.float32,))
    class OnlyFloat32(RMSNorm):
        pass

    with fastkernels.patch(llama, [OnlyFloat32]) as p:
        llama.to(torch.bfloat16)
        logits(llama, ids)
        site = p.report.applied[0]
        assert site.calls == 0 and "it supports float32, the site runs in bfloat16" in site.bypassed


def test_gradients_in_inference_mode_come_from_the_original(llama, ids):
    @fastkernels.candidate("rms_norm")
    class NoGradient(RMSNorm):
        def forward(self, x, residual=None):
            return super().forward(x.detach(), residual)

    loss = llama(ids, labels=ids).loss
    loss.backward()
    want = {n: p.grad.clone() for n, p in llama.named_parameters()}
    llama.zero_grad()
    with fastkernels.patch(llama, [NoGradient]) as p:
        llama(ids, labels=ids).loss.backward()
        assert all(torch.equal(q.grad, want[n]) for n, q in llama.named_parameters())
        assert all(s.calls == 0 for s in p.report.applied)


def test_training_mode_takes_only_candidates_that_train(llama, ids):
    class Plain(RMSNorm):
        pass

    with pytest.raises(PatchError, match="does not declare training=True"):
        fastkernels.patch(llama, {"rms_norm": Plain}, mode="training")

    @fastkernels.candidate("rms_norm", training=True)
    class Trains(RMSNorm):
        pass

    llama(ids, labels=ids).loss.backward()
    want = {n: p.grad.clone() for n, p in llama.named_parameters()}
    llama.zero_grad()
    with fastkernels.patch(llama, [Trains], mode="training") as p:
        llama(ids, labels=ids).loss.backward()
        assert all(s.calls == 1 for s in p.report.applied)
    for n, q in llama.named_parameters():
        torch.testing.assert_close(q.grad, want[n], rtol=1e-4, atol=1e-6)


def test_autocast_calls_run_the_original(llama, ids):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = llama(ids).logits
        with fastkernels.patch(llama, {"rms_norm": RMSNorm}) as p:
            assert torch.equal(llama(ids).logits, want)
            assert all(s.calls == 0 and "autocast is on" in s.bypassed for s in p.report.applied)


def test_accelerate_hooks_run_around_the_candidate(llama, ids):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Seen(ModelHook):
        count = 0

        def pre_forward(self, module, *args, **kwargs):
            self.count += 1
            return args, kwargs

    hook, norm = Seen(), llama.model.norm
    add_hook_to_module(norm, hook)
    want = logits(llama, ids)
    with fastkernels.patch(llama, {"rms_norm": CountingNorm}) as p:
        CountingNorm.calls = 0
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-5, atol=1e-6)
        assert hook.count == 2 and p.dispatchers["model.norm"].calls == 1 and CountingNorm.calls > 0
    assert torch.equal(logits(llama, ids), want) and hook.count == 3
    remove_hook_from_module(norm)
    assert "forward" not in vars(norm) or norm.forward.__func__ is type(norm).forward


def test_a_foreign_instance_forward_is_kept_and_the_site_gated(llama, ids):
    norm = llama.model.norm
    own = lambda x: type(norm).forward(norm, x) * 2  # noqa: E731 - the point is an anonymous instance forward
    norm.forward = own
    want = logits(llama, ids)
    with fastkernels.patch(llama, {"rms_norm": RMSNorm}) as p:
        site = next(s for s in p.report.sites if s.path == "model.norm")
        assert site.state == "gated" and "would drop" in site.reason
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-5, atol=1e-6)
        assert norm.forward is own
    assert norm.forward is own


def test_peft_wrapped_projections_are_left_to_peft(ids):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_llama(), LoraConfig(target_modules=["q_proj", "gate_proj"], r=4, init_lora_weights=False)
    ).eval()
    want = logits(model, ids)
    with fastkernels.patch(model, "reference", select=BASE) as p:
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)
        tasks = {s.task for s in p.report.applied}
        assert "rms_norm" in tasks and not {"gated_mlp", "attention_block"} & tasks
        assert any(s.path.endswith("q_proj.base_layer") for s in p.report.applied)
    assert torch.equal(logits(model, ids), want)


def test_peft_added_after_patching_is_not_bypassed(ids):
    from peft import LoraConfig, get_peft_model

    config = {"target_modules": ["q_proj", "gate_proj"], "r": 4, "init_lora_weights": False}
    plain, model = tiny_llama(), tiny_llama()
    torch.manual_seed(3)
    want = logits(get_peft_model(plain, LoraConfig(**config)).eval(), ids)
    with fastkernels.patch(model, "reference") as p:
        torch.manual_seed(3)
        wrapped = get_peft_model(model, LoraConfig(**config)).eval()
        torch.testing.assert_close(logits(wrapped, ids), want, rtol=1e-4, atol=1e-5)
        bypassed = [d for d in p.dispatchers.values() if d.bypassed]
        assert bypassed and all("reads otherwise than when it was patched" in next(iter(d.bypassed)) for d in bypassed)


def test_two_patches_stack_and_come_off_last_in_first_out(llama, ids):
    want = logits(llama, ids)
    first = fastkernels.patch(llama, {"rms_norm": CountingNorm})
    second = fastkernels.patch(llama, {"gated_mlp": LlamaMLP, "rms_norm": RMSNorm})
    torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)
    assert second.dispatchers["model.norm"].calls == 1 and first.dispatchers["model.norm"].calls == 0
    with pytest.raises(PatchError, match="on top of this patch"):
        first.unpatch()
    assert first.dispatchers["model.norm"] is second.dispatchers["model.norm"].original
    second.unpatch()
    torch.testing.assert_close(logits(llama, ids), want, rtol=1e-5, atol=1e-6)
    assert first.dispatchers["model.norm"].calls == 1
    first.unpatch()
    assert torch.equal(logits(llama, ids), want) and not list(dispatchers(llama))


def test_an_exception_half_way_leaves_nothing_behind(llama, ids):
    class FailsLater(RMSNorm):
        def __init__(self, hidden_size, eps=1e-6, **facts):
            super().__init__(hidden_size, eps, **facts)
            FailsLater.built += 1
            if FailsLater.built > 3:
                raise RuntimeError("out of luck")

    FailsLater.built = 0
    before, want = snapshot(llama), logits(llama, ids)
    pointers = [p.data_ptr() for p in llama.parameters()]
    with pytest.raises(fastkernels.CandidateError, match=r"out of luck"):
        fastkernels.patch(llama, {"rms_norm": FailsLater, "gated_mlp": LlamaMLP})
    assert_same_dicts(before, snapshot(llama))
    assert torch.equal(logits(llama, ids), want)
    storages = {p.untyped_storage().data_ptr() for p in llama.parameters()}
    assert len(storages) == len(pointers)


def test_generate_with_dynamic_and_static_caches_gives_the_same_tokens(llama, ids):
    arguments = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    padded = arguments | {"attention_mask": torch.cat((torch.zeros(2, 3), torch.ones(2, 9)), 1).long()}
    for extra in (arguments, padded, arguments | {"cache_implementation": "static", "disable_compile": True}):
        want = llama.generate(ids, **extra)
        with fastkernels.patch(llama, "reference") as p:
            assert torch.equal(llama.generate(ids, **extra), want)
            assert all(d.calls > 0 and not d.bypassed for d in p.dispatchers.values()), [
                (k, d.bypassed) for k, d in p.dispatchers.items()
            ]


def test_compiled_by_dynamo_the_candidate_is_in_the_graph(llama, ids):
    @fastkernels.candidate("rms_norm")
    class Marked(RMSNorm):
        def forward(self, x, residual=None):
            return super().forward(torch.sin(x) * 0 + x, residual)

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    want = logits(llama, ids)
    with fastkernels.patch(llama, [Marked]), torch.no_grad():
        got = torch.compile(llama, backend=keep)(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert sum(n.target is torch.sin for g in graphs for n in g.graph.nodes) == 5
    torch._dynamo.reset()


@pytest.mark.parametrize("when", ["patch", "call"])
def test_binding_in_inference_mode_leaves_parameters_that_can_be_trained(llama, ids, when):
    weights = {k: v.clone() for k, v in llama.state_dict().items()}
    if when == "patch":
        with torch.inference_mode():
            p = fastkernels.patch(llama, "reference")
    else:
        p = fastkernels.patch(llama, "reference")
        llama.load_state_dict(weights, assign=True)
        with torch.inference_mode():
            llama(ids)
    assert sum(len(d.binding.merges) for d in p.dispatchers.values()) > 0
    assert not [n for n, q in llama.named_parameters() if q.is_inference()]
    llama(ids, labels=ids).loss.backward()
    with torch.inference_mode():
        p.unpatch()
    assert not [n for n, q in llama.named_parameters() if q.is_inference()]
    llama(ids, labels=ids).loss.backward()
    assert all(q.grad is not None for q in llama.parameters())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "dynamo"])
def test_a_forward_kept_beyond_unpatch_runs_the_original_and_merges_nothing(llama, ids, compiled):
    p = fastkernels.patch(llama, "reference", select=BASE)
    dispatcher = p.dispatchers["model.layers.0.mlp"]
    kept = llama.model.layers[0].mlp.forward
    assert kept is dispatcher
    forward = torch.compile(lambda x: kept(x), backend="eager", fullgraph=True) if compiled else kept
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        forward(x)
        calls = dispatcher.calls
        p.unpatch()
        for _ in range(2):
            for weight in llama.model.layers[0].mlp.parameters():
                weight.mul_(0.5)
            torch.testing.assert_close(forward(x), llama.model.layers[0].mlp(x), rtol=0, atol=0)
    assert dispatcher.calls == calls and dispatcher.bypassed["it was unpatched"] > 0
    storages = {q.untyped_storage().data_ptr() for q in llama.parameters()}
    assert len(storages) == len(list(llama.parameters()))
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["whole", "modules", "stacked"])
def test_one_merged_weight_assigned_anew_is_merged_again_and_the_candidate_runs(llama, ids, how):
    name = "model.layers.0.self_attn.k_proj.weight"
    first = fastkernels.patch(llama, "reference", select=BASE) if how != "whole" else None
    p = fastkernels.patch(llama, "reference", select=BASE) if how == "stacked" else first
    p = p or fastkernels.patch(llama, "reference")
    logits(llama, ids)
    llama.load_state_dict({name: llama.state_dict()[name] * 3}, strict=False, assign=True)
    expected = tiny_llama()
    expected.load_state_dict(llama.state_dict())
    before = {k: d.calls for k, d in p.dispatchers.items()}
    torch.testing.assert_close(logits(llama, ids), logits(expected, ids), rtol=1e-4, atol=1e-5)
    assert not [d.bypassed for d in p.dispatchers.values() if d.bypassed]
    assert any(d.binding.merges for d in p.dispatchers.values())
    assert all(d.calls > before[k] for k, d in p.dispatchers.items())
    p.unpatch()
    if first is not None:
        first.unpatch()
    assert torch.equal(logits(llama, ids), logits(expected, ids))
    storages = {q.untyped_storage().data_ptr() for q in llama.parameters()}
    assert len(storages) == len(list(llama.parameters()))


@pytest.mark.parametrize("copied", [False, True], ids=["patched", "copy"])
@pytest.mark.parametrize("select", [None, BASE], ids=["whole", "modules"])
def test_export_of_a_patched_model_is_the_export_of_the_unpatched_one(llama, ids, select, copied):
    def exported(model: nn.Module) -> torch.export.ExportedProgram:
        arguments = {"input_ids": ids, "use_cache": False}
        with torch.no_grad():
            return torch.export.export(model, (), arguments, strict=False)

    want = exported(llama)
    with fastkernels.patch(llama, "reference", **({"select": select} if select else {})) as p:
        logits(llama, ids)
        calls = sum(d.calls for d in p.dispatchers.values())
        got = exported(copy.deepcopy(llama) if copied else llama)
        assert sum(d.calls for d in p.dispatchers.values()) == calls
        assert not [d.bypassed for d in p.dispatchers.values() if d.bypassed]
    assert [str(n.target) for n in got.graph.nodes] == [str(n.target) for n in want.graph.nodes]
    run = {"input_ids": ids, "use_cache": False}
    assert torch.equal(got.module()(**run).logits, want.module()(**run).logits)


def test_a_model_made_in_inference_mode_is_patched_and_unpatched_there(llama, ids):
    with torch.inference_mode():
        copied = copy.deepcopy(llama)
        want = logits(copied, ids)
        with fastkernels.patch(copied, "reference") as p:
            torch.testing.assert_close(logits(copied, ids), want, rtol=1e-4, atol=1e-5)
            assert p.report.applied
        assert torch.equal(logits(copied, ids), want)
