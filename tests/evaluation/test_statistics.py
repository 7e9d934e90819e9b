"""Statistics of timings: intervals hold the truth as often as they say, pairing is kept, broken samples are refused."""

import math
import time

import numpy as np
import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import RoundSample
from fastkernels.evaluation.statistics import latency_ratio, median_ratio, noise, percentiles, ratio


def sample(seconds, **values):
    return RoundSample(**({"seconds": seconds, "latency_ms": 1000 * seconds} | values))


def rounds_of(base, other):
    return [{"baseline": sample(b), "candidate": sample(o)} for b, o in zip(base, other, strict=True)]


@pytest.mark.parametrize(
    ("drift", "at_most"),
    [(0.0, 0.98), (0.01, 0.98), (0.05, 1.0)],
    ids=["none", "as the noise", "errs to the wide side"],
)
def test_interval_of_12_rounds_holds_the_truth_90_to_98_percent_of_the_time(drift, at_most):
    rng, held, trials = np.random.default_rng(7), 0, 600
    for _ in range(trials):
        machine = rng.normal(0, drift, 12)
        base, other = (scale * np.exp(machine + rng.normal(0, 0.01, 12)) for scale in (1.3, 1.0))
        found = ratio(rounds_of(base, other), "baseline", "candidate")
        assert found.low <= found.value <= found.high
        held += found.low <= 1.3 <= found.high
    assert 0.90 <= held / trials <= at_most


def test_what_slows_a_whole_round_cancels():
    rng = np.random.default_rng(0)
    machine = np.where(np.arange(12) % 3 == 0, 5.0, 1.0) * np.exp(rng.normal(0, 0.2, 12))
    found = ratio(rounds_of(1.5 * machine, machine), "baseline", "candidate")
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_one_slow_round_does_not_move_the_ratio():
    base, other = [2.0] * 12, [1.0] * 11 + [50.0]
    assert ratio(rounds_of(base, other), "baseline", "candidate").value == 2.0


def test_ratio_is_above_one_where_the_other_is_faster_and_swaps_to_its_inverse():
    rounds = rounds_of([2.0] * 4, [1.0] * 4)
    assert ratio(rounds, "baseline", "candidate").value == 2.0
    assert ratio(rounds, "candidate", "baseline").value == 0.5


def test_same_samples_give_the_same_interval():
    rounds = rounds_of(*np.random.default_rng(1).lognormal(0, 0.1, (2, 10)))
    assert ratio(rounds, "baseline", "candidate") == ratio(rounds, "baseline", "candidate")


def test_interval_narrows_with_more_rounds():
    def width(count):
        found = median_ratio(*np.random.default_rng(2).lognormal(0, 0.05, (2, count)))
        return found.high - found.low

    assert width(100) < width(10)


def test_latency_is_the_geometric_mean_of_ttft_and_tpot():
    rounds = [
        {"baseline": sample(1, ttft_ms=40, tpot_ms=9), "candidate": sample(7, ttft_ms=10, tpot_ms=1)} for _ in range(3)
    ]
    assert latency_ratio(rounds).value == pytest.approx(math.sqrt(4 * 9))


def test_latency_is_that_of_the_one_part_there_is():
    rounds = [{"baseline": sample(1, ttft_ms=40), "candidate": sample(7, ttft_ms=10)} for _ in range(3)]
    assert latency_ratio(rounds).value == 4


def test_latency_is_of_requests_where_nothing_is_generated():
    rounds = [{"baseline": sample(1, latency_ms=30), "candidate": sample(1, latency_ms=10)} for _ in range(3)]
    assert latency_ratio(rounds).value == pytest.approx(3)


def test_a_part_that_one_arm_lacks_is_not_compared():
    rounds = [{"baseline": sample(2, ttft_ms=40), "candidate": sample(1)} for _ in range(3)]
    assert latency_ratio(rounds).value == 2


def test_an_arm_over_itself_reads_one():
    rng = np.random.default_rng(3)
    found = noise(rng.lognormal(0, 0.01, 12), rng.lognormal(0, 0.01, 12))
    assert found.low < 1 < found.high and found.high - found.low < 0.05


def test_calls_of_a_round_are_pooled_and_drawn_together():
    found = median_ratio([[2.0, 2.2], [2.0, 2.1]], [[1.0, 1.0], [1.0, 1.0]])
    assert found.value == pytest.approx(2.05)
    assert (found.low, found.high) == pytest.approx((2.05, 2.1))


def test_percentiles_are_of_the_values():
    found = percentiles(np.arange(1001) / 10)
    assert (found.p50, found.p95, found.p99) == pytest.approx((50, 95, 99))


@pytest.mark.parametrize(
    ("base", "other", "says"),
    [
        ([1.0], [1.0], "1 complete rounds give no interval"),
        ([], [], "no timings"),
        ([1.0, 1.0], [1.0, 1.0, 1.0], "2 and 3 rounds"),
        ([1.0, 0.0], [1.0, 1.0], "not above 0"),
        ([1.0, math.nan], [1.0, 1.0], "not finite"),
        ([1.0, math.inf], [1.0, 1.0], "not finite"),
        ([1.0, None], [1.0, 1.0], "missing"),
    ],
)
def test_broken_samples_are_refused(base, other, says):
    with pytest.raises(EvaluationError, match=says):
        median_ratio(base, other)


def test_no_latencies_have_no_percentiles():
    with pytest.raises(EvaluationError, match="no timings"):
        percentiles([])


def test_an_interval_takes_milliseconds():
    rounds = rounds_of(*np.random.default_rng(1).lognormal(0, 0.1, (2, 40)))
    started = time.perf_counter()
    for _ in range(10):
        ratio(rounds, "baseline", "candidate")
    assert time.perf_counter() - started < 1  # 4 ms each, and the machine may be busy
