"""The speech recognition family on a tiny Whisper of random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.calibration import judge
from fastkernels.evaluation.e2e.families.asr import ASR, PREFIX, STEPS, ASRSession
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.perturb import CONTROL, int8_round_trip, perturb
from fastkernels.evaluation.e2e.workload import Workload

BATCHES = Workload(name="ASR.fixed_batch", batch=2, requests=3, output_tokens=10)


def tiny_whisper(dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=200,
        num_mel_bins=16,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=50,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        init_std=0.1,
    )
    return WhisperForConditionalGeneration(config).eval().to(dtype)


def session(model: nn.Module, *, mode: Mode = "eager", check_size: int = 8) -> ASRSession:
    return ASR().session(model, mode=mode, backend="eager", seed=1, texts=(), check_size=check_size)


def test_a_pass_gives_every_request_its_tokens_and_every_time() -> None:
    served = session(tiny_whisper()).serve(BATCHES)
    assert (served.requests, served.tokens, served.steps) == (3, 30, 20)
    assert served.outputs["tokens"].shape == (3, 10)
    assert (len(served.latency_ms), len(served.ttft_ms), len(served.tpot_ms)) == (2, 2, 18)


def test_tokens_are_those_of_decoding_without_a_cache() -> None:
    one = session(tiny_whisper())
    tokens = one.serve(BATCHES).outputs["tokens"]
    ids, features = one.prefix(3), one.features(BATCHES, 0)
    with torch.inference_mode():
        for _ in range(10):
            logits = one.decoder.model(input_features=features, decoder_input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids[:, PREFIX:], tokens)


def test_the_prefix_asks_for_a_transcript_where_the_model_says_how() -> None:
    model = tiny_whisper()
    model.generation_config.lang_to_id = {"<|en|>": 11}
    model.generation_config.task_to_id = {"transcribe": 12, "translate": 13}
    model.generation_config.no_timestamps_token_id = 14
    assert session(model).prefix(2).tolist() == 2 * [[3, 11, 12, 14]]


@pytest.mark.slow  # a language model's compiled steps are checked by default
def test_compiled_steps_give_the_eager_answer_and_tokens() -> None:
    torch.compiler.reset()
    eager, compiled = session(tiny_whisper()), session(tiny_whisper(), mode="default")
    assert torch.allclose(eager.answer()["logits"], compiled.answer()["logits"], atol=1e-5)
    for _ in range(2):
        assert torch.equal(eager.serve(BATCHES).outputs["tokens"], compiled.serve(BATCHES).outputs["tokens"])


def test_a_size_that_is_not_the_models_window_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"ASR.fixed_batch: size \[3000\], .* takes windows of 100 frames"):
        session(tiny_whisper()).serve(BATCHES.model_copy(update={"size": (3000,)}))


@pytest.mark.parametrize(
    ("production", "exact"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)], ids=["fp32", "bf16"]
)
def test_int8_and_one_percent_land_between_the_controls_in_that_order(
    production: torch.dtype, exact: torch.dtype
) -> None:
    reference, model = tiny_whisper(exact), tiny_whisper(production)
    oracle, baseline = session(reference).answer(), session(model).answer()
    assert oracle["logits"].shape == (8, PREFIX + STEPS, 200)
    with perturb(reference, CONTROL, seed=3):
        control = session(reference).answer()

    def score(candidate: Any) -> float:
        outputs: Any = {"oracle": oracle, "baseline": baseline, "control": control, "candidate": candidate}
        return judge(outputs, ASR(), mode="eager", oracle="").score

    with int8_round_trip(model):
        int8 = score(session(model).answer())
    with perturb(model, 0.01, seed=5):
        percent = score(session(model).answer())
    assert score(session(model).answer()) == 1.0
    assert 1.0 > int8 > percent > 0.0
    assert score(control) == 0.0


def test_timed_tokens_of_another_rounding_are_plausible_and_garbage_is_not() -> None:
    unpatched, other = session(tiny_whisper(torch.bfloat16)), session(tiny_whisper())
    before, outputs = (other.serve(BATCHES).outputs for _ in range(2))
    random = torch.randint(200, (3, 10), generator=torch.Generator().manual_seed(0))
    assert ASR().plausible(unpatched, BATCHES, outputs)[0] >= 0.99
    for tokens in (random, torch.zeros_like(random)):
        assert ASR().plausible(unpatched, BATCHES, {**outputs, "tokens": tokens})[0] < 0.1
    assert before["pass"] != outputs["pass"]
