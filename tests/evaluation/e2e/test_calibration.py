"""Where a distance lies between production's own and the control's, and what the gate says of it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.calibration import GATE, calibrate, judge
from fastkernels.evaluation.e2e.families.family import Distance, Tensors
from fastkernels.evaluation.e2e.families.llm import LLM


def at(value: float, trials: int | None = None) -> Distance:
    return Distance(value=value, shown=value, trials=trials)


def score(baseline: float, candidate: float, control: float, trials: int | None = None) -> float | None:
    return calibrate("m", baseline=at(baseline, trials), candidate=at(candidate, trials), control=at(control, trials))


def test_no_further_off_than_production_is_1_and_the_control_is_0() -> None:
    assert score(1e-3, 0.0, 1.0) == score(1e-3, 1e-3, 1.0) == score(1e-3, 1.4e-3, 1.0) == 1.0
    assert score(1e-3, 1.0, 1.0) == score(1e-3, 7.0, 1.0) == 0.0


def test_the_scale_between_is_logarithmic() -> None:
    steps = [score(1e-4 / 1.5, 10.0**n, 1.0) for n in (-4, -3, -2, -1)]
    assert steps == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_candidate_at_no_finite_distance_is_0(value: float) -> None:
    assert score(1e-3, value, 1.0) == 0.0


def test_a_control_that_is_hardly_worse_than_production_says_nothing() -> None:
    assert score(0.1, 0.1, 0.59) is None
    assert score(0.1, 0.1, 0.61) == 1.0


def test_a_baseline_that_is_the_oracle_forgives_nothing_but_arithmetic() -> None:
    assert score(0.0, 0.0, 1.0) == 1.0
    assert score(0.0, 1e-13, 1.0) == 1.0
    assert score(0.0, 1e-2, 1.0) == pytest.approx(2 / 12)


def test_one_flip_of_few_trials_is_luck_and_many_are_not() -> None:
    assert score(0.0, 1 / 320, 0.2, trials=320) == 1.0
    assert (score(0.0, 20 / 320, 0.2, trials=320) or 0) < 0.5
    assert score(0.0, 0.0, 1 / 320, trials=320) is None


def test_more_trials_need_less_slack() -> None:
    few, many = (score(0.01, 0.018, 0.5, trials=n) for n in (300, 30000))
    assert few == 1.0
    assert many is not None
    assert many < 1.0


def test_a_baseline_that_is_not_finite_is_an_error_not_a_score() -> None:
    with pytest.raises(EvaluationError, match="m: distance of the baseline is inf"):
        score(math.inf, 1.0, 2.0)


def answers(**noise: float) -> dict[Any, Tensors]:
    """Of an oracle, and of arms with noise of the given size on its logits."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 40, 50, generator=draw)
    targets = logits.argmax(-1)
    arms = {arm: logits + size * torch.randn(logits.shape, generator=draw) for arm, size in noise.items()}
    return {arm: {"logits": x, "targets": targets} for arm, x in ({"oracle": logits} | arms).items()}


def gate(outputs: dict[Any, Tensors]) -> Any:
    return judge(outputs, LLM(), mode="eager", oracle="float64, control 5%")


def test_the_least_metric_is_the_score_and_the_reason_names_it_with_its_numbers() -> None:
    found = gate(answers(baseline=1e-4, candidate=0.1, control=0.3))
    worst = min((m for m in found.metrics if m.score is not None), key=lambda m: m.score)
    assert found.score == worst.score < GATE
    assert not found.passed
    assert found.reason.startswith(f"{worst.name} is {worst.candidate:.3g} from the oracle")
    assert f"{worst.control:.3g}" in found.reason
    assert [m.name for m in found.metrics] == ["logit_kl", "logit_l2", "argmax", "top5", "perplexity"]
    assert found.oracle == "float64, control 5%"


def test_an_honest_candidate_passes_at_1() -> None:
    found = gate(answers(baseline=1e-4, candidate=1.1e-4, control=0.3))
    assert (found.score, found.passed, found.reason) == (1.0, True, "")


def test_inputs_that_cannot_tell_right_from_wrong_fail_and_say_so() -> None:
    found = gate(answers(baseline=0.3, candidate=0.3, control=0.3))
    assert (found.score, found.passed) == (0.0, False)
    assert "cannot tell right from wrong" in found.reason
    assert all(m.score is None for m in found.metrics)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda x: {**x, "logits": x["logits"][:4]},
            r"candidate's answer cannot be judged: .*\(4, 40, 50\).*\(8, 40, 50\)",
        ),
        (lambda x: {**x, "logits": x["logits"] / 0}, "candidate's answer cannot be judged: .* not finite"),
        (lambda x: {"targets": x["targets"]}, "candidate's answer lacks the output 'logits'"),
    ],
)
def test_an_answer_that_cannot_be_compared_is_0_with_the_reason(spoil: Any, reason: str) -> None:
    outputs = answers(baseline=1e-4, candidate=1e-4, control=0.3)
    outputs["candidate"] = spoil(outputs["candidate"])
    found = gate(outputs)
    assert (found.score, found.passed) == (0.0, False)
    assert re.search(reason, found.reason)
