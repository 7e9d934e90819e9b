"""Attention blocks and decoder layers of a running vLLM: candidates around the engine's own attention, paged cache,
chunked prefill, prefix caching and several requests at once, all as before."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections import Counter

import pytest
import torch

import fastkernels
from fastkernels.errors import PatchError
from fastkernels.patches.dispatch import Dispatcher
from fastkernels.patches.vllm.attention_block import alone, served_attention
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2.served_attention import CachedAttention, CountsFromZero, ServedAttention
from fastkernels.tasks.L3.served_layer import ForgetsTheResidual, ServedDecoderLayer
from tests.patches.vllm.engines import tiny_engine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment"),
]

# One sentence begins two of the requests, so that the later one finds its blocks in the cache of prefixes.
SHARED = "a prefix of more than one block of the paged cache, which two requests share: "
PROMPTS = (SHARED + "first", "b", "some words", SHARED + "and the second", "0123456789" * 5)
NEW_TOKENS = 12
CHUNK = 32  # tokens a step: the long prompts are prefilled in several
LAYERS = 2


class Engine:
    """A tiny model in an engine of this process."""

    def __init__(self, offline):
        self.llm, self.model, self.config = offline.llm, offline.model, offline.config
        self.before = self.generate()

    def generate(self, *, reset=True):
        """Greedy tokens of all prompts at once; nothing is left in the cache of prefixes from calls before."""
        from vllm import SamplingParams

        if reset:
            self.llm.reset_prefix_cache()
        how = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        return [list(o.outputs[0].token_ids) for o in self.llm.generate(list(PROMPTS), how, use_tqdm=False)]

    def hits(self):
        """Tokens that were found in the cache of prefixes so far."""
        found = {m.name: m for m in self.llm.get_metrics()}
        return found["vllm:prefix_cache_hits"].value

    @contextlib.contextmanager
    def patched(self, candidates, **how):
        from fastkernels.patches.vllm.context import call_context

        with call_context(self.config):
            handle = fastkernels.patch(self.model, candidates, **how)
        with handle:
            yield handle


@pytest.fixture(scope="module")
def engine(request, tmp_path_factory):
    with tiny_engine(
        request.param,
        tmp_path_factory.mktemp(request.param),
        max_num_seqs=4,
        max_num_batched_tokens=CHUNK,
        enable_prefix_caching=True,
        block_size=32,
        skip_tokenizer_init=False,
        disable_log_stats=False,
    ) as offline:
        yield Engine(offline)


def of(*names):
    return pytest.mark.parametrize("engine", names, indirect=True)


def interfaces(*tasks):
    return {name: get_task(name).interface for name in tasks}


class Own(ServedAttention):
    """Another class than the reference, so that nothing is taken for a mere carrier."""


class OwnLayer(ServedDecoderLayer):
    pass


class Steps(ServedAttention):
    """Notes how many tokens each step had."""

    seen: Counter = Counter()

    def forward(self, positions, hidden_states, attend):
        Steps.seen[len(hidden_states)] += 1
        return super().forward(positions, hidden_states, attend)


@of("llama", "qwen3", "mixtral")
def test_attention_blocks_give_the_same_tokens_in_chunked_prefill_and_decode(engine):
    hits = engine.hits()
    with engine.patched({"served_attention": Steps}) as handle:
        Steps.seen.clear()  # of its trials
        assert engine.generate() == engine.before
    assert engine.hits() > hits  # prefixes were shared, and the cache that the candidate filled was right
    assert max(Steps.seen) == CHUNK and Steps.seen[CHUNK] >= 2 * LAYERS  # whole chunks of several prefills
    assert Steps.seen[len(PROMPTS) - 1] or Steps.seen[1]  # decode
    applied = [s for s in handle.report.sites if s.task == "served_attention"]
    assert [s.state for s in applied] == ["applied"] * LAYERS
    assert all(s.calls == sum(Steps.seen.values()) / LAYERS and not s.bypassed for s in applied)
    assert all(s.evidence == "class; attention stood in for in probes" for s in applied)
    assert engine.generate() == engine.before


@of("llama", "qwen3")
def test_decoder_layers_give_the_same_tokens(engine):
    with engine.patched({"served_layer": OwnLayer}) as handle:
        assert engine.generate() == engine.before
    applied = [s for s in handle.report.sites if s.task == "served_layer"]
    assert [s.state for s in applied] == ["applied"] * LAYERS
    assert all(s.calls > NEW_TOKENS and not s.bypassed for s in applied)


@of("mixtral")
def test_a_mixture_of_experts_has_attention_blocks_and_no_layers(engine):
    with engine.patched(interfaces("served_attention", "served_layer")) as handle:
        assert Counter(s.task for s in handle.report.applied) == {"served_attention": LAYERS}


@of("llama", "qwen3")
def test_a_norm_runs_inside_the_layer_that_holds_it(engine):
    calls = Counter()

    class Norm(RMSNorm):
        def forward(self, x, residual=None):
            calls["with residual" if residual is not None else "alone"] += 1
            return super().forward(x, residual)

    with engine.patched({"served_layer": OwnLayer, "rms_norm": Norm}) as handle:
        assert engine.generate() == engine.before
        sites = {s.path: s for s in handle.report.sites if s.task == "rms_norm"}
    inner = sites["model.layers.1.post_attention_layernorm"]
    assert (inner.state, inner.inside) == ("applied", "model.layers.1") and inner.calls > NEW_TOKENS
    assert calls["with residual"] and calls["alone"]
    if "model.layers.0.self_attn.q_norm" in sites:
        assert sites["model.layers.0.self_attn.q_norm"].calls > NEW_TOKENS


@of("qwen3")
def test_a_norm_alone_reaches_every_norm(engine):
    with engine.patched({"rms_norm": type("Norm", (RMSNorm,), {})}) as handle:
        assert engine.generate() == engine.before
    assert len(handle.report.applied) == 4 * LAYERS + 1
    assert all(s.calls > NEW_TOKENS for s in handle.report.applied)


@pytest.mark.parametrize(
    ("task", "wrong"), [("served_attention", CountsFromZero), ("served_layer", ForgetsTheResidual)]
)
@of("llama")
def test_a_wrong_candidate_is_refused_and_without_verification_the_tokens_show_it(engine, task, wrong):
    with pytest.raises(PatchError, match=rf"{wrong.__name__} is off by"), engine.patched({task: wrong}):
        pass
    assert not any("forward" in m.__dict__ for m in engine.model.modules())
    with engine.patched({task: wrong}, verify=False):
        assert engine.generate() != engine.before
    assert engine.generate() == engine.before


@of("llama")
def test_a_patch_of_the_live_engine_and_its_end_leave_no_keys_of_the_others_in_the_cache(engine):
    engine.generate()
    hits = engine.hits()
    assert engine.generate(reset=False) == engine.before and engine.hits() > hits  # prompts are found there
    with fastkernels.patch(engine.llm, {"served_attention": CountsFromZero}, verify=False):
        assert engine.generate(reset=False) != engine.before
    assert engine.generate(reset=False) == engine.before


@of("llama")
def test_the_engines_attention_is_called_and_never_replaced(engine):
    block = engine.model.model.layers[0].self_attn
    held = block._modules["attn"]
    seen = []
    hook = held.register_forward_hook(lambda *_: seen.append(1))
    try:
        with engine.patched({"served_attention": Own}):
            assert engine.generate() == engine.before
            assert len(seen) == block.__dict__["forward"].calls > NEW_TOKENS
    finally:
        hook.remove()
    assert block._modules["attn"] is held and "forward" not in held.__dict__


@of("llama")
def test_a_probe_that_fails_leaves_the_engines_attention_in_its_place(engine):
    block = engine.model.model.layers[0].self_attn
    held = block._modules["attn"]
    attention = CachedAttention(torch.ones(1, 1, 1), torch.ones(1, 1, 1))

    def fails():
        with alone(block, attention):
            assert block._modules["attn"] is attention
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert block._modules["attn"] is held


@of("llama")
def test_a_layer_with_a_lora_wrapper_or_another_quantisation_is_gated_with_the_reason(engine):
    linear = engine.model.model.layers[0].self_attn.qkv_proj
    method = linear.quant_method
    linear.quant_method = type("Fp8LinearMethod", (), {"apply": method.apply})()
    try:
        with engine.patched({"served_attention": Own, "served_layer": OwnLayer}) as handle:
            states = {s.path: (s.state, s.reason) for s in handle.report.sites if s.task.startswith("served")}
            assert engine.generate() == engine.before
    finally:
        linear.quant_method = method
    for path in ("model.layers.0.self_attn", "model.layers.0"):
        assert states[path][0] == "gated" and re.search("qkv_proj.*Fp8LinearMethod", states[path][1])
    assert states["model.layers.1"][0] == "applied"


@of("llama")
def test_a_call_of_another_form_runs_the_original_with_the_reason(engine):
    with engine.patched({"served_attention": Own}):
        forward = engine.model.model.layers[0].self_attn.__dict__["forward"]
        assert isinstance(forward, Dispatcher)
        three = forward.proposal.enter((torch.zeros(3, 4, dtype=torch.long), torch.zeros(4, 128)), {})
        assert "several axes" in three
        assert "called with" in forward.proposal.enter((), {"positions": three, "other": three})


def test_positions_and_hidden_states_are_all_that_a_known_block_takes():
    class Other(torch.nn.Module):
        def forward(self, positions, hidden_states, scale):
            return hidden_states * scale

    assert list(served_attention(Other(), None)) == []
