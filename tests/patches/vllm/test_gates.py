"""Real vLLM engines: where nothing may stand, the report says so and why, and the answers stay the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.engines.offline_vllm import PROMPTS, Offline
from tests.patches.vllm.engines import changed, drift, patched, reasons, tiny_engine, tokens
from tests.serving.lora_adapter import adapter

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    with tiny_engine("llama", tmp_path_factory.mktemp("llama")) as engine:
        yield engine


def answers(engine: Offline, adapter: Any) -> list[list[int]]:
    """Greedy tokens of one batch of prompts under a LoRA request, or None."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=12, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    outputs = engine.llm.generate(prompts, greedy, lora_request=adapter, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs]


def test_with_lora_wrapped_layers_are_gated_the_rest_is_patched_and_adapters_answer_as_before(tmp_path: Any) -> None:
    from vllm.lora.request import LoRARequest

    with tiny_engine("llama", tmp_path, enable_lora=True, max_lora_rank=8) as engine:
        adapted = LoRARequest("mine", 1, str(adapter(tmp_path / "mine", tmp_path / "models" / "llama")))
        before = [answers(engine, asked) for asked in (None, adapted)]
        assert before[0] != before[1]
        with patched(engine) as handle:
            assert [answers(engine, asked) for asked in (None, adapted)] == before
            sites = handle.report.sites
        gated = {s.task for s in sites if s.state == "gated" and "LoRA" in s.reason}
        assert gated == {"linear", "embedding", "gated_mlp"}
        assert {s.task for s in sites if s.state == "applied"} == {"rms_norm", "silu_and_mul", "rotary_emb"}
        assert not any(s.calls == 0 for s in sites if s.state == "applied")


def test_before_lora_wraps_the_layers_they_are_gated_too(llama: Offline) -> None:
    with changed(llama.config, lora_config=object()):
        assert "about to wrap" in reasons(llama, "model.layers.0.mlp.down_proj")["linear"]
        assert "LoRA" in reasons(llama, "model.layers.0.mlp")["gated_mlp"]
        assert "about to wrap" in reasons(llama, "model.embed_tokens")["embedding"]


def test_a_quantised_layer_is_gated_with_its_method_and_so_is_what_holds_it(llama: Offline) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    class CoarseLinearMethod(UnquantizedLinearMethod):
        """A grid of 1/16 on the activations."""

        def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return super().apply(layer, (x * 16).round() / 16, bias)

    layer = llama.model.get_submodule("model.layers.1.mlp.down_proj")
    before = llama.generate()
    with changed(layer, quant_method=CoarseLinearMethod()):
        quantised = llama.generate()
        with patched(llama) as handle:
            states = {(s.path, s.task): (s.state, s.reason) for s in handle.report.sites}
            assert states["model.layers.1.mlp.down_proj", "linear"][0] == "gated"
            assert "quant method CoarseLinearMethod" in states["model.layers.1.mlp.down_proj", "linear"][1]
            assert "quant method CoarseLinearMethod" in states["model.layers.1.mlp", "gated_mlp"][1]
            assert states["model.layers.0.mlp", "gated_mlp"][0] == "applied"
            after = llama.generate()
            assert tokens(after) == tokens(quantised) and drift(after, quantised) < 1e-3 < drift(quantised, before)


def test_a_weight_that_the_engine_removed_gates_the_layer(llama: Offline) -> None:
    layer = llama.model.get_submodule("model.layers.0.self_attn.qkv_proj")
    with changed(layer, weight=nn.Parameter(torch.empty(0), requires_grad=False)):
        assert "keep_weights()" in reasons(llama, "model.layers.0.self_attn.qkv_proj")["linear"]


def test_a_partial_mean_square_gates_a_norm(llama: Offline) -> None:
    with changed(llama.model.get_submodule("model.norm"), variance_size_override=64):
        assert "first 64 values" in reasons(llama, "model.norm")["rms_norm"]


def test_a_spread_vocabulary_gates_the_embedding(llama: Offline) -> None:
    with changed(llama.model.get_submodule("model.embed_tokens"), tp_size=2):
        assert "2 ranks" in reasons(llama, "model.embed_tokens")["embedding"]


def test_batch_invariance_gates_everything(llama: Offline, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True, raising=False)  # read from the environment at start
    with patched(llama, on_miss="report") as handle:
        assert {s.state for s in handle.report.sites} <= {"gated", "unmatched"}
        assert "VLLM_BATCH_INVARIANT" in next(s.reason for s in handle.report.sites if s.task == "rms_norm")
