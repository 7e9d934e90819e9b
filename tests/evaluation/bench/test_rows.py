"""A row says what was measured, and says nothing where nothing may be claimed."""

from __future__ import annotations

from typing import Any

from fastkernels.evaluation.bench.reasons import REASONS
from fastkernels.evaluation.bench.result import BaselineTiming, BenchResult, CaseResult, Failure, Timing
from fastkernels.evaluation.bench.rows import HEADINGS, baselines, closing, microseconds, notes, row, why
from fastkernels.evaluation.e2e.result import Interval, Machine


def timing(seconds: float) -> Timing:
    return Timing(seconds=seconds, low=seconds, high=seconds)


def case(**more: Any) -> CaseResult:
    fields: dict[str, Any] = {"task": "linear", "level": 1, "case": "rows", "dtype": "bfloat16", "device": "cuda"}
    fields |= {"status": "PASSED", "gate": True, "score": 2.0, "timing": {"eager": timing(10e-6)}}
    fields |= {"baselines": [BaselineTiming(name="cublas", modes={"eager": timing(20e-6), "graph": timing(18e-6)})]}
    fields |= {"best_baseline": "cublas", "ratio": Interval(value=2.0, low=1.9, high=2.1)}
    fields |= {"bytes": 20_000_000, "flops": 1_000_000, "roofline_share": 0.71}
    return CaseResult(**(fields | more))


def failed(*codes: str) -> CaseResult:
    failures = [Failure(code=c, where="random_1", detail="seen") for c in codes]
    return case(status=REASONS[codes[0]].status, gate=False, score=0.0, failures=failures)


def test_a_row_has_time_rate_roofline_ratio_and_gate() -> None:
    assert len(row(case()).cells) == len(HEADINGS)
    assert row(case()).cells == (
        *("L1 linear rows bfloat16", "10.0", "2e+03 GB/s", "71%", "2.00x [1.90, 2.10] cublas", "pass"),
    )


def test_a_row_tells_which_mode_is_scored_and_the_other_ones_ratio() -> None:
    graph, eager = Interval(value=2.0, low=1.9, high=2.1), Interval(value=1.25, low=1.2, high=1.3)
    modes: dict[str, Any] = {"mode": "graph", "ratio": graph, "ratios": {"eager": eager, "graph": graph}}
    found = row(case(timing={"eager": timing(20e-6), "graph": timing(10e-6)}, **modes))
    assert (found.us, found.ratio) == ("10.0", "2.00x [1.90, 2.10] cublas, graph (eager 1.25x)")


def test_arithmetic_is_told_in_tflops() -> None:
    assert row(case(flops=7_000_000_000)).rate == "700 TFLOP/s"
    assert row(case(bound="compute")).rate == "0.1 TFLOP/s"


def test_a_red_gate_shows_its_codes_and_no_ratio() -> None:
    found = row(failed("GHOST", "GHOST", "WRONG_OUTPUT"))
    assert (found.ratio, found.gate, found.passed) == ("-", "GHOST, WRONG_OUTPUT", False)


def test_what_only_calls_the_reference_is_flagged() -> None:
    assert row(case(delegates=True, score=1.0)).gate == "pass, delegates"


def test_a_pass_that_noise_hides_says_so() -> None:
    assert row(case(notes=["noise: the interval spans 3x"])).gate == "pass, noise"


def test_a_note_of_many_cases_is_told_once() -> None:
    machine = Machine(device="a GPU", versions={})
    cases = [case(notes=["no vLLM"]), case(notes=["no vLLM", "empty"])]
    told = BenchResult(mode="candidates", candidate="mine", machine=machine, cases=cases, notes=["L1/odd.py: no task"])
    assert notes(told) == ["L1/odd.py: no task", "no vLLM (2 cases)", "empty (1 case)"]


def test_nothing_timed_is_a_dash() -> None:
    assert row(case(timing={}, ratio=None, roofline_share=None)).cells[1:5] == ("-",) * 4


def test_every_baseline_and_mode_is_shown() -> None:
    assert baselines(case()) == [
        ("candidate", "eager", "10.0"),
        ("cublas", "eager", "20.0"),
        ("cublas", "graph", "18.0"),
    ]


def test_a_failure_comes_with_its_way_out_once() -> None:
    lines = why(failed("GHOST", "GHOST", "WRONG_OUTPUT"), at_most=2)
    assert lines[:3] == ["GHOST random_1: seen", "GHOST random_1: seen", "and 1 more"]
    assert [line.split(":")[0] for line in lines[3:]] == ["GHOST", "WRONG_OUTPUT"]
    assert REASONS["GHOST"].way_out in lines[3]


def test_the_closing_line_counts_every_case() -> None:
    skipped = case(
        status="SKIPPED", gate=False, score=0.0, failures=[Failure(code="SKIPPED", where="", detail="float16")]
    )
    machine = Machine(device="a GPU", versions={"torch": "2.13"})
    told = BenchResult(mode="candidates", candidate="mine", machine=machine, cases=[case(), failed("GHOST"), skipped])
    assert closing(told) == "score 0.000: 1 passed, 1 failed, 1 skipped of 3 cases; a GPU, torch 2.13, 0 s"


def test_microseconds_keep_three_digits() -> None:
    assert [microseconds(s) for s in (0.5e-6, 9.876e-6, 98.76e-6, 987.6e-6, 9.876e-3)] == [
        *("0.50", "9.88", "98.8", "988", "9880"),
    ]
