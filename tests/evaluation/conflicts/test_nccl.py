"""Two ranks that run a candidate together: what their logs mean, and two processes that do it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastkernels import conflicts
from fastkernels.evaluation.conflicts.ranks import CAPTURE, Step, Told
from fastkernels.evaluation.conflicts.stages.nccl import _judged

CANDIDATES = Path(__file__).parent / "candidates"
REDUCE = Step(kind="collective", text="c10d::allreduce_(float32[4])", file="c.py", line=3)
BARRIER = Step(kind="collective", text="c10d::barrier()", file="c.py", line=9)
CALLS, CAPTURED = Step(kind="phase", text="calls"), Step(kind="phase", text=CAPTURE)
DONE, ERROR = Step(kind="done"), Step(kind="error", text="RuntimeError: connection closed by peer")
DIED = Step(kind="phase", text="calls, and no end; it said: terminate called")


def codes(*logs, hung=()):
    return [f.code for f in _judged(Told(logs=[list(log) for log in logs], hung=list(hung)))]


@pytest.mark.parametrize(
    ("one", "other", "hung"),
    [
        ([CALLS, REDUCE, ERROR], [CALLS, DONE], ()),
        ([CALLS, REDUCE, DIED], [CALLS, DONE], ()),
        ([CALLS, REDUCE, DIED], [CALLS, DONE], (0,)),
        ([CALLS, REDUCE, DIED], [CALLS, BARRIER, DIED], (0, 1)),
        ([CALLS, REDUCE, BARRIER, DONE], [CALLS, REDUCE, DONE], ()),
    ],
)
def test_ranks_that_call_different_collectives_are_a_mismatch_however_they_end(one, other, hung):
    assert codes(one, other, hung=hung) == codes(other, one, hung=[1 - r for r in hung]) == ["NC_MISMATCH"]


def test_a_rank_that_raises_before_its_collective_is_an_error_and_no_mismatch():
    assert codes([CALLS, REDUCE, DIED], [CALLS, ERROR], hung=[0]) == ["NC_ERROR"]


def test_equal_collectives_that_fail_or_hang_in_a_capture_could_not_be_captured():
    assert codes([CALLS, REDUCE, CAPTURED, REDUCE, ERROR], [CALLS, REDUCE, CAPTURED, REDUCE, DONE]) == [
        "CG_NCCL_CAPTURE"
    ]
    assert codes(*[[CALLS, REDUCE, CAPTURED, REDUCE, DIED]] * 2, hung=[0, 1]) == ["CG_NCCL_CAPTURE"]
    assert codes(*[[CALLS, REDUCE, DIED]] * 2, hung=[0, 1]) == ["NC_ERROR"]


def test_wrong_results_are_told_by_calls_and_by_replays():
    good = [CALLS, REDUCE, DONE]
    assert codes(good, good) == []
    for how, code in (("two ranks", "NC_PARITY"), ("replay", "CG_NCCL_CAPTURE")):
        assert codes([CALLS, REDUCE, Step(kind="wrong", text=f"{how}: off"), DONE], good) == [code]


@pytest.mark.slow
def test_a_clean_collective_is_run_by_two_ranks_and_a_capture_asks_for_two_devices():
    (cell,) = [c for c in conflicts(CANDIDATES / "clean_cuda" / "all_reduce_silu.py", stages=["nccl"]).cells
               if c.stage == "nccl"]  # fmt: skip
    assert cell.status == "skip"
    assert cell.reason == "two ranks on CPUs agree; a capture needs two CUDA devices"
