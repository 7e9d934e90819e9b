"""Which mode is scored, against which baseline, and what the clocks must not contradict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastkernels.evaluation.bench import scored as module
from fastkernels.evaluation.bench.replies import Batch
from fastkernels.evaluation.bench.result import CaseResult
from fastkernels.evaluation.bench.roofline import Peaks
from fastkernels.evaluation.bench.scored import CANDIDATE, below_roofline, clocks_differ, scored
from fastkernels.evaluation.bench.suspicion import suspicions
from fastkernels.evaluation.bench.times import Contest, Times

US = 1e-6
FIXED = 50 * US


def contest(noise: float = 0.0, **microseconds: float) -> Contest:
    """Contestants that take so many microseconds a call, in eight rounds of a hundred calls; ``noise`` is the
    candidate's."""

    def times(us: float, noise: float) -> Times:
        rounds = [us * (1 + noise * (i % 2)) for i in range(8)]
        return Times(
            batches=[Batch(calls=100, wall=FIXED + 100 * t * US, cpu=0.0, events=100 * t * US) for t in rounds]
        )

    return Contest(times={n: times(us, noise * (n == CANDIDATE)) for n, us in microseconds.items()}, empty=[FIXED])


def test_where_both_can_be_captured_the_graphs_are_scored_against_the_best_baseline_there() -> None:
    contests: dict[Any, Contest] = {
        "eager": contest(candidate=20, plain=22, quick=30),
        "graph": contest(candidate=5, plain=15, quick=10),
    }
    found = scored(contests, {})
    assert (found["mode"], found["best_baseline"]) == ("graph", "quick")
    assert found["score"] == found["ratio"].value == pytest.approx(2.0)
    assert {m: round(r.value, 2) for m, r in found["ratios"].items()} == {"eager": 1.1, "graph": 2.0}


def test_a_candidate_that_is_no_graph_is_scored_eager_against_eager() -> None:
    found = scored({"eager": contest(candidate=20, plain=40)}, {})
    assert (found["mode"], found["best_baseline"], round(found["score"], 2)) == ("eager", "plain", 2.0)


def test_a_baseline_that_is_no_graph_and_still_the_fastest_is_what_counts() -> None:
    contests: dict[Any, Contest] = {
        "eager": contest(candidate=20, plain=40, planned=10),
        "graph": contest(candidate=18, plain=36),
    }
    found = scored(contests, {})
    assert (found["mode"], found["best_baseline"], round(found["score"], 2)) == ("eager", "planned", 0.5)
    assert "planned is no graph" in found["notes"][0]


def test_a_self_test_is_against_its_own_source_in_the_mode_that_both_ran_in() -> None:
    contests: dict[Any, Contest] = {"eager": contest(candidate=20, a=20, b=30), "graph": contest(candidate=9, b=3)}
    found = scored(contests, {"best_baseline": "a"})
    assert (found["mode"], found["best_baseline"], round(found["score"], 2)) == ("eager", "a", 1.0)
    assert set(found["ratios"]) == {"eager"} and set(found["timing"]) == {"eager", "graph"}


def test_noise_and_delegation_never_score_above_one() -> None:
    noisy = scored({"eager": contest(candidate=1, plain=4, noise=6.0)}, {})
    assert noisy["score"] <= 1 and noisy["notes"][0].startswith("noise")
    assert scored({"eager": contest(candidate=1, plain=4)}, {"delegates": True})["score"] == 1.0


def test_what_is_scored_makes_a_consistent_record() -> None:
    contests: dict[Any, Contest] = {"eager": contest(candidate=20, a=22), "graph": contest(candidate=5, a=10)}
    given = {"task": "relu", "level": 1, "case": "rows", "dtype": "float32", "device": "cuda"}
    case = CaseResult(**given, status="PASSED", gate=True, **scored(contests, {}))
    assert case.mine is not None and case.best is not None
    assert case.best.seconds / case.mine.seconds == pytest.approx(case.score)


def test_kernels_may_not_run_for_longer_than_a_call_of_the_scored_mode() -> None:
    contests: dict[Any, Contest] = {"eager": contest(candidate=80, a=90), "graph": contest(candidate=20, a=30)}
    fields = scored(contests, {})
    assert clocks_differ(fields, None) == [] and fields["timing"]["graph"].kernel_seconds is None
    assert clocks_differ(fields, 19 * US) == [] and fields["timing"]["graph"].kernel_seconds == 19 * US
    (failure,) = clocks_differ(fields, 40 * US)
    assert failure.code == "CLOCK_MISMATCH"
    assert clocks_differ({}, 40 * US) == []


class Here:
    """What of a site decides the floor."""

    device, dtype = torch.device("cuda", 0), torch.float32


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GB/s and no cache."""
    found = Peaks(device="cuda", dtype=torch.float32, cache_bytes=0, bandwidth=((1, 1e9),), flops=1e12)
    monkeypatch.setattr(module, "measured_peaks", lambda *_: found)


@pytest.mark.usefixtures("peaks")
def test_the_share_is_of_the_scored_mode_and_no_mode_may_be_impossible() -> None:
    contests: dict[Any, Contest] = {"eager": contest(candidate=80, a=200), "graph": contest(candidate=20, a=40)}
    fields = scored(contests, {}) | {"bytes": 20_000, "flops": 0}
    assert below_roofline(Here, fields) == []
    assert (round(fields["roofline_share"], 2), fields["bound"]) == (1.0, "memory")
    impossible = scored(contests, {}) | {"bytes": 38_000, "flops": 0}
    (failure,) = below_roofline(Here, impossible)
    assert (failure.code, failure.detail.partition(":")[0]) == ("BELOW_ROOFLINE", "graph")


# What times say of a batch


class Ground:
    """What of a bed the suspicions need."""

    site, mode = Here, "graph"


@pytest.mark.parametrize(
    ("events", "wall", "codes"),
    [
        (10_000 * US, 10_050 * US, []),
        (1_000 * US, 10_050 * US, ["CLOCK_MISMATCH"]),
        (float("nan"), 10_050 * US, ["CLOCK_MISMATCH"]),
        (0.0, 40 * US, []),  # less than a batch without calls
        (0.0, 50 * US, []),
    ],
)
def test_events_that_tell_less_than_the_wall_clock_are_held_against_a_batch_that_lasts(events, wall, codes) -> None:
    batch = Batch(calls=100, wall=wall, cpu=0.0, events=events)
    mine = Times(batches=[batch] * 3, collect=[US] * 3, drained=[US] * 3)
    told = Contest(times={CANDIDATE: mine, "a": mine}, empty=[FIXED])
    assert [f.code for f in suspicions(Ground, told, CANDIDATE, "a")] == codes


def test_a_device_that_is_still_busy_after_the_batch_is_held_against_it() -> None:
    batch = Batch(calls=100, wall=10_050 * US, cpu=0.0, events=10_000 * US)
    done, busy = (Times(batches=[batch] * 3, collect=[US] * 3, drained=[us * US] * 3) for us in (60, 2_000))
    found = suspicions(Ground, Contest(times={CANDIDATE: busy, "a": done}, empty=[FIXED]), CANDIDATE, "a")
    assert [f.code for f in found] == ["LATE_WORK"]


@pytest.mark.parametrize(
    ("collect", "drained", "late"),
    [
        ((90, 110, 130, 900), (50, 55, 60, 900), 0),
        ((900, 1_000, 1_100, 4_000), (60, 60, 60, 60), 1_000 - 110 - 200),
        ((100, 100, 100, 100), (60, 460, 470, 480), 460 - 66 - 50),  # less than what is held against it
    ],
)
def test_what_most_rounds_left_for_after_the_clock_is_counted_in(collect, drained, late) -> None:
    batch = Batch(calls=100, wall=1_000 * US + FIXED, cpu=0.0, events=None)
    mine = Times(batches=[batch] * 4, collect=[us * US for us in collect], drained=[us * US for us in drained])
    mine.charge(Times(collect=[100 * US] * 4, drained=[60 * US] * 4))
    assert mine.per_call(FIXED)[0] == pytest.approx((1_000 + late) * US / 100)
