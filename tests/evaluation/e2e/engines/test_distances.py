"""Distances of log probabilities, where a side tells its likeliest tokens only, order candidates as logits would."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.calibration import judge
from fastkernels.evaluation.e2e.engines.distances import distances_of, kl_of_top
from fastkernels.evaluation.e2e.engines.family import EngineLLM
from fastkernels.evaluation.e2e.perturb import CONTROL, int8_round_trip, perturb
from fastkernels.evaluation.e2e.prompts import packaged_texts
from fastkernels.evaluation.e2e.source import CHECKOUT

LLAMA = CHECKOUT / "models" / "stdlib-llama"


def logits(seed=0, rows=200, vocabulary=64, spread=3.0):
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)).double()


def top(values, k=20):
    best = values.log_softmax(-1).topk(k)
    return best.indices, best.values


def kl(values, oracle):
    p, q = oracle.log_softmax(-1), values.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 0.3, 3.0])
def test_the_kl_of_likeliest_tokens_is_no_more_than_the_true_one_and_most_of_it(noise):
    oracle = logits()
    other = oracle + noise * logits(1, spread=1.0)
    found, true = kl_of_top(*top(other), *top(oracle)), kl(other, oracle)
    assert found <= true * (1 + 1e-9)
    assert found > 0.5 * true


def test_it_is_exact_over_the_buckets_where_both_sides_tell_the_same_tokens():
    oracle = torch.tensor([[0.6, 0.3, 0.06, 0.04]], dtype=torch.float64).log()
    other = torch.tensor([[0.45, 0.35, 0.02, 0.18]], dtype=torch.float64).log()
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ((0.6, 0.3, 0.1), (0.45, 0.35, 0.2)))
    assert kl_of_top(*top(other, 2), *top(oracle, 2)) == pytest.approx((p * (p / q).log()).sum().item())


def test_a_candidate_that_tells_none_of_the_oracles_tokens_is_far_off():
    oracle, other = torch.zeros(1, 100).double(), torch.zeros(1, 100).double()
    oracle[:, :20] += 8.0
    other[:, 50:70] += 8.0
    assert kl_of_top(*top(other), *top(oracle)) > 1.0


@pytest.fixture(scope="module")
def answers():
    """Of transformers in the place of an engine: the real model as production has it, and made worse."""
    family = EngineLLM()

    def session(dtype):
        model = AutoModelForCausalLM.from_pretrained(LLAMA, dtype=dtype).eval()
        return model, family.session(
            model, mode="eager", backend="inductor", seed=1, texts=packaged_texts(), check_size=8
        )

    def answer(dtype, worse=None, seed=5):
        model, started = session(dtype)
        if worse is None:
            return started.answer()
        with int8_round_trip(model) if worse == "int8" else perturb(model, worse, seed=seed):
            return started.answer()

    with torch.inference_mode():
        return {
            "oracle": answer(torch.float32),
            "baseline": answer(torch.bfloat16),
            "control": answer(torch.bfloat16, CONTROL, seed=3),
            "int8": answer(torch.bfloat16, "int8"),
            "1%": answer(torch.bfloat16, 0.01),
        }


def judged(answers, candidate):
    outputs = {name: answers[name] for name in ("oracle", "baseline", "control")} | {"candidate": candidate}
    return judge(outputs, EngineLLM(), mode="eager", oracle="")


def test_int8_and_one_percent_land_between_the_controls_in_that_order(answers):
    score = {name: judged(answers, answers[name]).score for name in ("baseline", "int8", "1%", "control")}
    assert score["baseline"] == 1.0
    assert 1.0 > score["int8"] > score["1%"] > 0.0
    assert score["control"] == 0.0


def test_an_error_in_decode_steps_alone_is_red(answers):
    steps = {k: v for k, v in answers["control"].items() if k.startswith("step_")}
    found = judged(answers, answers["baseline"] | steps)
    assert not found.passed
    assert found.reason.startswith("step_")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("step_top_ids"), "lacks the output 'step_top_ids'"),
        (lambda t: t.update(prompt_targets=t["prompt_targets"] + 1), "not the tokens that the oracle was asked for"),
        (lambda t: t.update(prompt_target_logprobs=t["prompt_target_logprobs"] / 0), "are not finite"),
        (lambda t: t.update(step_top_logprobs=t["step_top_logprobs"][:, :1]), r"shape \(8, 1, 20\)"),
    ],
)
def test_an_answer_that_is_none_scores_zero_with_the_reason(answers, change, reason):
    candidate = dict(answers["baseline"])
    change(candidate)
    found = judged(answers, candidate)
    assert (found.score, found.passed) == (0.0, False)
    assert re.search(reason, found.reason)


def test_other_shapes_are_an_error(answers):
    with pytest.raises(EvaluationError, match="the oracle's is"):
        distances_of("prompt", {k: v[:4] for k, v in answers["baseline"].items()}, answers["oracle"])
