"""Mixtures of experts: which modules of transformers are read as router, experts and block, and which are not."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastkernels
from fastkernels import PatchError
from fastkernels.patches.site import Draws
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.moe_router import KEPT, stable_tokens
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L1.topk_softmax import TopkSoftmax
from fastkernels.tasks.L2.fused_experts import FusedExperts
from fastkernels.tasks.L2.moe_router import TopKRouter
from fastkernels.tasks.L2.shared_expert_moe import SharedExpertMoE
from tests.patches.test_contract import assert_same_dicts, snapshot
from tests.patches.transformers.tiny import Tiny, build

TASKS = ("moe_router", "fused_experts", "shared_expert_moe")
# What each model's routing is: the facts that differ from the defaults.
V3 = {"scoring": "sigmoid", "has_correction_bias": True, "float_logits": True}
MODELS = {
    "mixtral": {},
    "qwen3_moe": {"renormalize": False, "float_weights": False},
    "qwen2_moe": {"renormalize": False, "float_weights": False},
    "olmoe": {"renormalize": False, "float_weights": False},
    "granitemoe": {"float_logits": True, "float_weights": False},
    "hunyuan_v1_moe": {"float_weights": False},
    "deepseek_v3": V3 | {"routed_scaling": 2.5, "num_groups": 2, "topk_groups": 1, "best_of_group": 2},
    "glm4_moe": V3,
    "glm4v_moe_text": V3,
}
SHARED = {"qwen2_moe", "deepseek_v3", "glm4_moe", "glm4v_moe_text", "hunyuan_v1_moe"}


@cache
def tiny(model_type: str) -> Tiny:
    return build(model_type)


def moe_only(site):
    return site.task.family == "moe"


def parts_only(site):
    return site.task.name in ("moe_router", "fused_experts")


def agree(tiny: Tiny, want: list[torch.Tensor]) -> None:
    for got, expected in zip(tiny.run(), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def sites(report, task):
    return [s for s in report.sites if s.task == task]


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "granitemoe"])
def test_what_a_host_hands_down_for_routers_keeps_no_attention_from_its_candidate(model_type):
    model = tiny(model_type)
    with fastkernels.patch(model.model, "reference", select="*:attention_block") as p:
        model.run()
        found = sites(p.report, "attention_block")
        assert found
        assert all(s.calls >= 1 and not s.bypassed for s in found), [s.bypassed for s in found]


@pytest.mark.parametrize("model_type", MODELS)
def test_blocks_are_recognised_and_computed_alike(model_type):
    model = tiny(model_type)
    want = model.run()
    before = snapshot(model.model)
    with fastkernels.patch(model.model, "reference", select=moe_only) as p:
        agree(model, want)
        blocks, routers, experts = (sites(p.report, t) for t in ("shared_expert_moe", "moe_router", "fused_experts"))
        assert 0 < len(blocks) == len(routers) == len(experts)
        assert all(s.state == "applied" and s.calls == 1 and not s.bypassed for s in blocks)
        assert all(s.state == "shadowed" for s in (*routers, *experts))
        assert all(isinstance(p.dispatchers[s.path].implementation, SharedExpertMoE) for s in blocks)
        shared = [p.dispatchers[s.path].implementation.shared_expert is not None for s in blocks]
        assert shared == [model_type in SHARED] * len(blocks)
    assert_same_dicts(before, snapshot(model.model))
    assert all(torch.equal(a, b) for a, b in zip(model.run(), want, strict=True))


@pytest.mark.parametrize("model_type", MODELS)
def test_routers_and_experts_are_recognised_on_their_own(model_type):
    model = tiny(model_type)
    want = model.run()
    with fastkernels.patch(model.model, "reference", select=parts_only) as p:
        agree(model, want)
        assert p.report.count()["applied"] == len(sites(p.report, "moe_router")) + len(sites(p.report, "fused_experts"))
        assert all(s.calls == 1 for s in p.report.applied)
        facts = next(d.proposal.facts for d in p.dispatchers.values() if isinstance(d.implementation, TopKRouter))
        assert {k: facts[k] for k in MODELS[model_type]} == MODELS[model_type]
        assert facts["scoring"] == MODELS[model_type].get("scoring", "softmax")


@pytest.mark.parametrize("model_type", ["lfm2_moe", "minimax_m2", "afmoe"])
def test_a_correction_bias_of_the_block_is_passed_on(model_type):
    model = tiny(model_type)
    with torch.no_grad():
        for name, tensor in (*model.model.named_buffers(), *model.model.named_parameters()):
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                tensor.copy_(torch.linspace(-0.5, 0.5, tensor.numel()).view(tensor.shape))
    want = model.run()
    with fastkernels.patch(model.model, "reference", select=moe_only) as p:
        agree(model, want)
        blocks = sites(p.report, "shared_expert_moe")
        assert blocks
        assert all(s.state == "applied" and s.calls == 1 for s in blocks)
        assert not sites(p.report, "moe_router")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_half_precision_is_judged_where_no_rounding_decides(model_type, dtype):
    class OwnLogits(TopKRouter):
        """Rounds its logits elsewhere than the model: another choice wherever two experts are close."""

        def project(self, hidden_states):
            wide = F.linear(hidden_states.float(), self.weight.float())
            return wide if self.float_logits else wide.mul(1 + torch.finfo(dtype).eps / 2).to(dtype)

    model = build(model_type).model.to(dtype)
    with fastkernels.patch(model, {"moe_router": OwnLogits, "fused_experts": FusedExperts}, select=parts_only) as p:
        assert {s.task for s in p.report.applied} == {"moe_router", "fused_experts"}


def wide_router() -> nn.Module:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeTopKRouter

    torch.manual_seed(0)
    router = Qwen3MoeTopKRouter(Qwen3MoeConfig(hidden_size=128, num_experts=256, num_experts_per_tok=8))
    nn.init.normal_(router.weight, std=0.1)
    return router.to(torch.bfloat16).eval()


@torch.no_grad()
def test_probe_tokens_keep_their_experts_through_roundings():
    module = wide_router()
    facts = {"hidden_size": 128, "num_experts": 256, "top_k": 8}

    def flips(tokens):
        exact = (tokens.double() @ module.weight.double().T).topk(8).indices
        return int((module(tokens)[2].sort().values != exact.sort().values).any(-1).sum())

    count = Counter()
    for seed in range(8):
        draw = Draws(seed=seed, device=torch.device("cpu"), dtype=torch.bfloat16, site_dtype=torch.bfloat16)
        tokens = stable_tokens(draw, module, facts, {"weight": Param("weight")})
        assert len(tokens) == KEPT
        count.update(stable=flips(tokens), drawn=flips(draw.normal(KEPT, 128, salt=1)))
    assert count["stable"] == 0 < count["drawn"]


def test_a_router_that_takes_the_ninth_expert_for_the_eighth_is_refused_in_bfloat16():
    class OneOff(TopKRouter):
        def route(self, logits):
            weights, ids = super().route(logits)
            nearly = logits.topk(self.top_k + 1, dim=-1).indices
            return weights, torch.cat((ids[:, :-1], nearly[:, -1:]), dim=-1)

    with pytest.raises(PatchError, match="is off by"):
        fastkernels.patch(nn.Sequential(wide_router()), {"moe_router": OneOff})


def test_level_one_candidates_are_carried():
    class Topk(TopkSoftmax):
        calls = 0

        def forward(self, gating_output):
            type(self).calls += 1
            return super().forward(gating_output)

    class Silu(SiluAndMul):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x)

    model = tiny("mixtral")
    want = model.run()
    with fastkernels.patch(model.model, {"topk_softmax": Topk, "silu_and_mul": Silu}) as p:
        Topk.calls = Silu.calls = 0
        agree(model, want)
        assert {s.task for s in p.report.applied} >= {"moe_router", "fused_experts"}
        assert Topk.calls == Silu.calls == 2  # once a layer
        assert not any(s.state == "applied" for s in sites(p.report, "shared_expert_moe"))


def test_lower_candidates_run_inside_a_blocks_candidate():
    class Experts(FusedExperts):
        pass

    class Block(SharedExpertMoE):
        pass

    model = tiny("qwen2_moe")
    with fastkernels.patch(model.model, {"shared_expert_moe": Block, "fused_experts": Experts}) as p:
        assert all(type(d.implementation.experts) is Experts for d in p.dispatchers.values())
        assert all(s.state == "applied" for t in ("shared_expert_moe", "fused_experts") for s in sites(p.report, t))


class ForgetsTheCorrection(TopKRouter):
    def choose(self, scores):
        return scores.topk(self.top_k, dim=-1).indices


class Unweighted(FusedExperts):
    def forward(self, hidden_states, topk_weights, topk_ids):
        return super().forward(hidden_states, torch.ones_like(topk_weights) / topk_ids.shape[-1], topk_ids)


class NoScaling(SharedExpertMoE):
    def forward(self, hidden_states):
        self.gate.routed_scaling = 1.0
        return super().forward(hidden_states)


@pytest.mark.parametrize(
    "candidates",
    [{"moe_router": ForgetsTheCorrection}, {"fused_experts": Unweighted}, {"shared_expert_moe": NoScaling}],
    ids=lambda c: next(iter(c)),
)
def test_wrong_candidates_are_refused(candidates):
    model = build("deepseek_v3").model
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.linspace(0.4, -0.4, buffer.numel()))
    before = snapshot(model)
    with pytest.raises(PatchError, match="is off by"):
        fastkernels.patch(model, candidates)
    assert_same_dicts(before, snapshot(model))


def test_a_hook_on_the_router_sends_the_block_back_to_the_original():
    model = tiny("mixtral")
    seen = []
    with fastkernels.patch(model.model, "reference", select=moe_only) as p:
        gate = model.model.model.layers[0].mlp.gate
        handle = gate.register_forward_hook(lambda m, args, out: seen.append(out[0].shape))
        model.run()
        handle.remove()
        first, second = sites(p.report, "shared_expert_moe")
        assert seen
        assert (first.calls, second.calls) == (0, 1)
        assert first.bypassed


@torch.no_grad()
def test_router_logits_are_still_recorded_over_a_patched_router():
    model = tiny("mixtral")
    want = model.model(**model.inputs, output_router_logits=True).router_logits
    with fastkernels.patch(model.model, "reference", select=parts_only) as p:
        got = model.model(**model.inputs, output_router_logits=True).router_logits
        assert sum(s.calls for s in sites(p.report, "moe_router")) == 2
    assert len(got) == len(want) == 2
    torch.testing.assert_close(got, want)


def wrap(module: nn.Module) -> nn.Module:
    return nn.ModuleDict({"inner": module})


def altered(cls: type[nn.Module], **methods) -> nn.Module:
    """An instance of a subclass of one of Mixtral's classes."""
    from transformers import MixtralConfig

    config = MixtralConfig(hidden_size=32, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    module = type(f"Altered{cls.__name__}", (cls,), methods)(config).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def rival_modules():
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralSparseMoeBlock, MixtralTopKRouter

    def clamped(self, hidden_states, top_k_index, top_k_weights):
        gate_up = torch.einsum("th,eoh->teo", hidden_states, self.gate_up_proj)
        gate, up = gate_up.chunk(2, -1)
        rows = torch.einsum("tei,ehi->teh", F.silu(gate.clamp(max=7.0)) * up.clamp(-7.0, 7.0), self.down_proj)
        return (rows.gather(1, top_k_index[..., None].expand(-1, -1, rows.shape[-1])) * top_k_weights[..., None]).sum(1)

    def interleaved(self, hidden_states, top_k_index, top_k_weights):
        gate_up = torch.einsum("th,eoh->teo", hidden_states, self.gate_up_proj)
        rows = torch.einsum("tei,ehi->teh", F.silu(gate_up[..., ::2]) * gate_up[..., 1::2], self.down_proj)
        return (rows.gather(1, top_k_index[..., None].expand(-1, -1, rows.shape[-1])) * top_k_weights[..., None]).sum(1)

    def square_root(self, hidden_states):
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, ids = F.softplus(logits.float()).sqrt().topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(-1, keepdim=True), ids

    def worst_experts(self, hidden_states):
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, ids = logits.float().softmax(-1).topk(self.top_k, dim=-1, largest=False)
        return logits, weights / weights.sum(-1, keepdim=True), ids

    def doubled(self, hidden_states):
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, ids = self.gate(flat)
        return 2 * self.experts(flat, ids, weights).view(hidden_states.shape)

    return {
        "clamped": (MixtralExperts, clamped, "fused_experts"),
        "interleaved": (MixtralExperts, interleaved, "fused_experts"),
        "square_root": (MixtralTopKRouter, square_root, "moe_router"),
        "worst_experts": (MixtralTopKRouter, worst_experts, "moe_router"),
        "doubled": (MixtralSparseMoeBlock, doubled, "shared_expert_moe"),
    }


@pytest.mark.parametrize("rival", ["clamped", "interleaved", "square_root", "worst_experts", "doubled"])
def test_rivals_are_not_recognised(rival):
    cls, forward, task = rival_modules()[rival]
    assert task in {s.task for s in fastkernels.plan(wrap(altered(cls)), "reference").sites}
    report = fastkernels.plan(wrap(altered(cls, forward=forward)), "reference")
    assert task not in {s.task for s in report.sites}
    assert [(u.task, u.reason.split(":")[0]) for u in report.unrecognised] == [(task, "probe mismatch")]


@pytest.mark.parametrize(
    ("model_type", "tasks"),
    [
        ("axk1", {"moe_router", "fused_experts"}),  # the block ends in a norm
        ("phimoe", {"fused_experts"}),  # a router of its own kind
        ("gpt_oss", {"moe_router"}),  # clamped experts with biases
        ("glm5_next_text", {"moe_router"}),  # clamped experts
        ("llama4_text", set()),  # experts on every token, inputs weighted
    ],
)
def test_other_mixtures_are_recognised_only_in_part(model_type, tasks):
    report = fastkernels.plan(tiny(model_type).model, "reference", select=moe_only)
    assert {s.task for s in report.sites} & set(TASKS) == tasks
