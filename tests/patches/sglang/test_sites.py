"""Real SGLang models patched with the tasks' references: every site, the same tokens, exact counts, and back again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import fastkernels
from fastkernels import PatchError
from fastkernels.tasks import get_task
from tests.patches.sglang.conftest import STEPS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# (task, state) of the sites of two layers, where every task of these has its reference; attention blocks and layers
# have tests of their own.
ATTENTION = {("linear", "applied"): 4, ("rotary_emb", "applied"): 1, ("attention", "gated"): 2}
ENDS = {("embedding", "applied"): 1, ("linear", "gated"): 1}
MLPS = {("gated_mlp", "applied"): 2, ("linear", "shadowed"): 4}
BLOCKS = {("shared_expert_moe", "applied"): 2, ("fused_experts", "shadowed"): 2, ("linear", "shadowed"): 2}
BLOCKS |= {("topk_softmax", "shadowed"): 2}
SITES = {
    "llama": ATTENTION | ENDS | MLPS | {("silu_and_mul", "shadowed"): 2, ("rms_norm", "applied"): 5},
    "qwen3": ATTENTION | ENDS | MLPS | {("silu_and_mul", "shadowed"): 2, ("rms_norm", "applied"): 9},
    "qwen3_moe": ATTENTION | ENDS | BLOCKS | {("rms_norm", "applied"): 9},
    "mixtral": ATTENTION | ENDS | BLOCKS | {("rms_norm", "applied"): 5},
    "gemma2": ATTENTION | ENDS | MLPS | {("gelu_and_mul", "shadowed"): 2, ("gemma_rms_norm", "applied"): 9},
}
TASKS = {task for table in SITES.values() for task, _ in table}
MODELS = (*SITES, "llama:bfloat16", "qwen3_moe:bfloat16")
each_model = pytest.mark.parametrize("engine", MODELS, indirect=True)

WITHIN_BLOCKS = lambda site: site.task.name in TASKS  # noqa: E731 - what no test elsewhere covers
L1 = lambda site: site.task.level == 1  # noqa: E731 - modules that hold no other site


def snapshot(model):
    return {
        path: {k: (dict(v) if isinstance(v, dict) else v) for k, v in vars(part).items()}
        for path, part in model.named_modules()
    }


def assert_same(engine, tokens, logits):
    """The same tokens; of a bfloat16 model, whose own roundings decide between tokens, logits within a few of them."""
    rounded = next(engine.model.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(logits, engine.logits, rtol=0, atol=0.05 if rounded else 1e-4)
    if not rounded:
        assert tokens == engine.tokens


@each_model
def test_references_at_every_site_give_the_same_tokens(engine):
    handle = fastkernels.patch(engine.model, "reference", select=WITHIN_BLOCKS)
    try:
        tokens, logits = engine.generate()
        report = handle.report
    finally:
        handle.unpatch()
    assert_same(engine, tokens, logits)
    assert not report.unrecognised
    assert Counter((s.task, s.state) for s in report.sites if s.task in TASKS) == SITES[engine.name]
    for site in report.applied:
        layers = 2 if site.task == "rotary_emb" else 1  # one instance for all layers
        assert (site.path, site.calls, site.bypassed) == (site.path, STEPS * layers, {})
    assert all(s.reason for s in report.sites if s.state == "gated")


@each_model
def test_every_module_of_level_one_is_reached_by_itself(engine):
    with fastkernels.patch(engine.model, "reference", select=L1) as handle:
        tokens, logits = engine.generate()
        report = handle.report
    assert_same(engine, tokens, logits)
    assert {s.task for s in report.applied} >= {"linear", "embedding", "rotary_emb"}
    assert all(s.calls in (STEPS, 2 * STEPS) and not s.bypassed for s in report.applied)


@each_model
def test_unpatch_leaves_the_model_as_it_was(engine):
    before = snapshot(engine.model)
    fastkernels.patch(engine.model, "reference").unpatch()
    after = snapshot(engine.model)
    for path, was in before.items():
        now = after[path]
        assert was.keys() == now.keys(), path
        for key, value in was.items():
            same = value == now[key] if not isinstance(value, dict) else all(now[key][k] is v for k, v in value.items())
            assert same is True or value is now[key], (path, key)
    tokens, logits = engine.generate()
    assert tokens == engine.tokens and torch.equal(logits, engine.logits)


@pytest.mark.parametrize("engine", ["llama:bfloat16", "qwen3_moe:bfloat16"], indirect=True)
def test_candidates_were_verified_in_the_dtype_that_calls_come_in(engine):
    """Before the first call: a verification later would fall into a warm-up, or a graph that is being captured."""
    with fastkernels.patch(engine.model, "reference", select=L1) as handle:
        engine.generate()
        admitted = {d.proposal.task: set(d.admitted) for d in handle.dispatchers.values()}
    assert set(map(frozenset, admitted.values())) == {frozenset({(torch.bfloat16, torch.device("cpu"))})}, admitted


@pytest.mark.parametrize("engine", ["llama"], indirect=True)
def test_shipped_candidates_give_the_same_tokens(engine):
    with fastkernels.patch(engine.model, "shipped") as handle:
        tokens, _ = engine.generate()
        applied = {s.task: s.calls for s in handle.report.applied}
    assert tokens == engine.tokens
    assert {"rms_norm", "rotary_emb", "gated_mlp"} <= set(applied) and all(applied.values())


@pytest.mark.parametrize("engine", ["mixtral"], indirect=True)
def test_no_reference_stands_in_for_the_engines_fused_experts(engine):
    """For a gate inside them: the engine's kernel for the whole is faster than any reference around a candidate."""
    report = fastkernels.plan(engine.model, {"silu_and_mul": get_task("silu_and_mul").interface})
    assert not report.applied


def tilted(task):
    """The task's reference, its first output 10% too small at one end of a row and too large at the other: a factor
    for all of it would be lost in the norms that follow in some models."""

    class Wrong(get_task(task).interface):
        def forward(self, *args):
            result = super().forward(*args)
            first, rest = (result[0], result[1:]) if isinstance(result, tuple) else (result, ())
            first = first * torch.linspace(0.9, 1.1, first.shape[-1], dtype=first.dtype)
            return (first, *rest) if rest else first

    return Wrong


class TooLarge(get_task("rms_norm").interface):
    """A norm, 5% too large."""

    def forward(self, x, residual=None):
        result = super().forward(x, residual)
        return result * 1.05 if residual is None else (result[0] * 1.05, result[1])


WRONG = {
    "llama": ("rms_norm", "linear", "embedding", "silu_and_mul", "rotary_emb", "gated_mlp"),
    "gemma2": ("gemma_rms_norm", "gelu_and_mul"),
    "mixtral": ("topk_softmax", "fused_experts", "shared_expert_moe"),
}


@pytest.mark.parametrize(
    ("engine", "task"), [(m, t) for m, tasks in WRONG.items() for t in tasks], indirect=["engine"], scope="module"
)
def test_a_wrong_candidate_is_refused_and_unverified_it_changes_what_is_generated(engine, task):
    wrong = {task: tilted(task)}
    with pytest.raises(PatchError, match="is off by"):
        fastkernels.patch(engine.model, wrong)
    assert not any("forward" in vars(part) for part in engine.model.modules())
    with fastkernels.patch(engine.model, wrong, verify=False) as handle:
        _, logits = engine.generate()
        assert all(s.calls for s in handle.report.applied)
    assert (logits - engine.logits).abs().max() > 1e-2


@pytest.mark.parametrize("engine", ["llama"], indirect=True)
def test_a_wrong_norm_changes_tokens(engine):
    with pytest.raises(PatchError, match="is off by"):
        fastkernels.patch(engine.model, {"rms_norm": TooLarge})
    with fastkernels.patch(engine.model, {"rms_norm": TooLarge}, verify=False):
        tokens, _ = engine.generate()
    assert tokens != engine.tokens
