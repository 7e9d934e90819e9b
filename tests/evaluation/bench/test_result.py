"""What a bench's record promises: nothing is dropped, nothing red scores, the public JSON is the public one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fastkernels.evaluation.bench.reasons import GRAVEST_FIRST, REASONS, status_of
from fastkernels.evaluation.bench.result import BaselineTiming, BenchResult, CaseResult, Failure, Timing
from fastkernels.evaluation.e2e.result import Machine

ONE, TWO = ({"value": x, "low": x, "high": x} for x in (1.0, 2.0))


def case(score: float = 1.0, *codes: str, **more: Any) -> CaseResult:
    status = status_of(codes)
    fields: dict[str, Any] = {"task": "silu", "level": 1, "case": "rows", "dtype": "float32", "device": "cpu"}
    fields |= {"status": status, "gate": status == "PASSED", "score": score if status == "PASSED" else 0.0}
    fields["failures"] = [Failure(code=c, where="random_0", detail="seen") for c in codes]
    return CaseResult(**(fields | more))


def result(*cases: CaseResult) -> BenchResult:
    machine = Machine(device="a CPU", versions={"torch": "2"})
    return BenchResult(mode="candidates", candidate="mine", machine=machine, cases=list(cases))


def timing(seconds: float) -> Timing:
    return Timing(seconds=seconds, low=seconds, high=seconds)


def test_the_score_is_the_geometric_mean() -> None:
    assert result(case(4.0), case(1.0)).score == pytest.approx(2.0)


@pytest.mark.parametrize("code", [c for c in REASONS if c != "SKIPPED"])
def test_one_failure_of_any_kind_makes_the_score_nothing(code: str) -> None:
    judged = result(case(4.0), case(4.0, code))
    assert judged.score == 0.0
    assert [c.status for c in judged.failed] == [REASONS[code].status]


def test_no_case_and_only_skipped_cases_score_nothing() -> None:
    assert result().score == 0.0
    assert result(case(1.0, "SKIPPED")).score == 0.0
    assert not result(case(1.0, "SKIPPED")).public()["all_passed"]


def test_declining_hard_cases_never_raises_the_score() -> None:
    both, best_only = result(case(4.0), case(1.0)), result(case(4.0), case(1.0, "SKIPPED"))
    assert best_only.score <= both.score + 1e-12
    assert result(case(0.5), case(0.5)).score == pytest.approx(result(case(0.5), case(1.0, "SKIPPED")).score)


def test_a_dtype_that_is_declined_altogether_is_left_out() -> None:
    assert result(case(2.0), case(1.0, "SKIPPED", dtype="float16")).score == pytest.approx(2.0)


def test_one_miraculous_ratio_does_not_carry_the_mean() -> None:
    assert result(case(1e300), case(1.0)).score == pytest.approx(10.0)


def test_many_small_scores_do_not_underflow() -> None:
    assert result(*[case(1e-3)] * 200).score == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "PASSED", "gate": True, "failures": [Failure(code="GHOST", where="", detail="")]},
        {"gate": False},
        {"score": math.inf},
        {"score": math.nan},
        {"score": -1.0},
        {"delegates": True, "score": 1.5},
        {"mode": "graph", "ratio": ONE, "ratios": {"eager": ONE}},
        {"mode": "eager", "ratio": TWO, "ratios": {"eager": ONE}},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CaseResult.model_validate(case().model_dump() | wrong)


def test_a_red_case_cannot_carry_a_score() -> None:
    with pytest.raises(ValidationError, match="it is 0 there"):
        CaseResult.model_validate(case(1.0, "WRONG_OUTPUT").model_dump() | {"score": 2.0})


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValidationError, match="is no code"):
        Failure(code="ODD", where="", detail="")


def test_the_gravest_failure_names_the_status() -> None:
    assert status_of(["WRONG_OUTPUT", "CALL_ERROR", "FORGED"]) == "REWARD_HACK"
    assert status_of(["WRONG_OUTPUT", "CALL_ERROR"]) == "RUNTIME_ERROR"
    assert {r.status for r in REASONS.values()} == set(GRAVEST_FIRST)


def test_the_record_survives_its_json_with_infinite_errors() -> None:
    before = result(case(1.0, "WRONG_OUTPUT", error=math.inf, max_abs_error=math.inf))
    assert BenchResult.model_validate_json(before.model_dump_json()) == before


def test_public_json_has_the_public_keys_and_no_numbers_that_json_has_not() -> None:
    timings: dict[str, Any] = {
        "timing": {"eager": timing(2e-6)},
        "baselines": [BaselineTiming(name="a", modes={"eager": timing(5e-6), "graph": timing(4e-6)})],
        "best_baseline": "a",
    }
    public = result(case(2.5, mode="eager", **timings), case(1.0, "WRONG_OUTPUT", error=math.inf)).public()
    text = json.dumps(public, allow_nan=False)
    assert set(json.loads(text)) == {"mode", "passed", "failed", "skipped", "all_passed", "scenarios"}
    assert (public["passed"], public["failed"], public["skipped"], public["all_passed"]) == (1, 1, 0, False)
    good, bad = public["scenarios"]
    assert list(good) == [
        *("op", "level", "shape", "dtype", "status", "max_abs_error", "max_rel_error", "matched_ratio"),
        *("candidate_ms", "baseline_ms", "speedup", "detail"),
    ]
    assert (good["candidate_ms"], good["baseline_ms"]) == pytest.approx((2e-3, 5e-3))
    assert good["speedup"] == 2.5 and bad["speedup"] == 0.0 and "WRONG_OUTPUT" in bad["detail"]


def test_both_sides_are_compared_in_the_same_mode() -> None:
    modes: dict[str, Any] = {"timing": {"eager": timing(2e-6), "graph": timing(1e-6)}}
    modes["baselines"] = [BaselineTiming(name="a", modes={"eager": timing(5e-6), "graph": timing(4e-6)})]
    eager, any_mode = case(1.0, mode="eager", **modes), case(1.0, **modes)
    assert eager.mine is not None and eager.best is not None
    assert (eager.mine.seconds, eager.best.seconds) == (2e-6, 5e-6)
    assert any_mode.mine is not None and any_mode.mine.seconds == 1e-6


def test_the_documentation_has_every_code_as_the_catalogue_has_it() -> None:
    text = (Path(__file__).parents[3] / "docs" / "bench.md").read_text()
    told = [line for line in text.splitlines() if line.startswith("| `")]
    assert told == [f"| `{r.code}` | {r.status} | {r.means} | {r.way_out} |" for r in REASONS.values()]
