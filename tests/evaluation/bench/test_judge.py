"""What the judge lets pass and what not, on results made by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.judge import Verdict, judge, same_bits
from fastkernels.tasks import get_task
from fastkernels.tasks.accuracy import Error

SILU = get_task("silu")


def values(rows: int = 8, width: int = 64) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def judged(got: Any, reference: Any, **more: Any) -> Verdict:
    oracle = (
        tuple(r.double() if isinstance(r, torch.Tensor) else r for r in reference)
        if isinstance(reference, tuple)
        else reference.double()
    )
    return judge(got, reference, oracle, **({"task": SILU, "dtype": torch.float32} | more))


def codes(got: Any, reference: Any, **more: Any) -> list[str]:
    return [f.code for f in judged(got, reference, **more).failures]


def test_the_reference_itself_passes() -> None:
    verdict = judged(values(), values())
    assert not verdict.failures and verdict.matched_ratio == 1.0 and verdict.error.l2 == 0.0


def test_one_wrong_element_of_many_fails() -> None:
    wrong = values(1000, 64)
    wrong[500, 7] += 0.5
    verdict = judged(wrong, values(1000, 64))
    assert [f.code for f in verdict.failures] == ["WRONG_OUTPUT"]
    assert verdict.matched_ratio == pytest.approx(1 - 1 / 64000)


def test_a_small_row_that_is_left_out_does_not_hide_behind_large_ones() -> None:
    right = values()
    right[3] *= 2e-3
    wrong = right.clone()
    wrong[3] = 0
    error = judged(wrong, right, dtype=torch.bfloat16).error
    assert error.peak < SILU.accuracy.limit(Error(l2=0, peak=0), torch.bfloat16).peak  # the norms alone would pass it
    assert codes(wrong, right, dtype=torch.bfloat16) == ["WRONG_OUTPUT"]


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_a_narrower_dtype_inside_fails_where_float32_is_asked(narrow: torch.dtype) -> None:
    assert codes(values().to(narrow).float(), values()) == ["WRONG_OUTPUT"]
    assert codes(values().to(narrow).float(), values(), dtype=narrow) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_fails(bad: float) -> None:
    wrong = values()
    wrong[0, 0] = bad
    assert codes(wrong, values()) == ["WRONG_OUTPUT"]


def test_infinities_that_the_reference_has_too_pass() -> None:
    masked = values()
    masked[:, 5] = -math.inf
    assert codes(masked.clone(), masked) == []


def test_flushing_denormals_to_zero_passes() -> None:
    denormal = torch.full((4, 32), 1e-40)
    assert codes(torch.zeros(4, 32), denormal) == []
    assert codes(torch.zeros(4, 32), denormal * 1e6) == ["WRONG_OUTPUT"]


@pytest.mark.parametrize(
    ("got", "reference", "code"),
    [
        (values()[:4], values(), "WRONG_SHAPE"),
        (values().double(), values(), "WRONG_DTYPE"),
        (None, values(), "WRONG_TYPE"),
        ((values(),), values(), "WRONG_TYPE"),
        ((values(),), (values(), values()), "WRONG_SHAPE"),
        ((values(), None), (values(), values()), "WRONG_TYPE"),
        ((values(), values()), (values(), None), "WRONG_TYPE"),
        ({"a": values()}, values(), "WRONG_TYPE"),
    ],
)
def test_another_structure_is_told_apart_from_another_value(got: Any, reference: Any, code: str) -> None:
    assert codes(got, reference) == [code]


def test_a_list_is_as_good_as_a_tuple() -> None:
    assert codes([values(), None], (values(), None)) == []


def test_an_integer_is_right_or_wrong() -> None:
    ids = torch.arange(1000)
    near = ids.clone()
    near[3] += 1
    assert codes(near, ids) == ["WRONG_OUTPUT"]


def test_each_output_is_judged_by_its_own_limit() -> None:
    """The reference's own large error on one output excuses nothing on the other."""
    rough, exact = values().bfloat16().float(), values()
    verdict = judge(
        (rough, exact + 1e-3), (rough, exact), (values().double(), exact.double()), task=SILU, dtype=torch.float32
    )
    assert [f.code for f in verdict.failures] == ["WRONG_OUTPUT"]
    assert verdict.failures[0].detail.startswith("output[1]")


def test_where_the_reference_is_not_finite_nothing_is_judged() -> None:
    overflown = values()
    overflown[0, 0] = math.inf
    with pytest.raises(EvaluationError, match="use other inputs"):
        judge(overflown, overflown, values().double(), task=SILU, dtype=torch.float32, where="random_0")


def test_an_argument_that_was_written_to_fails_by_a_single_bit() -> None:
    before = (torch.zeros(4),)
    after = (torch.tensor([0.0, 0.0, -0.0, 0.0]),)
    found = judged(values(), values(), inputs_before=before, inputs_after=after).failures
    assert [(f.code, f.detail) for f in found] == [("MUTATED_INPUT", "x was changed by forward")]
    assert codes(values(), values(), inputs_before=before, inputs_after=(torch.zeros(4),)) == []


def test_a_declared_mutation_must_be_the_references() -> None:
    task = dataclasses.replace(SILU, mutates=("x",))
    arguments: dict[str, Any] = {"task": task, "inputs_before": (values(),), "expected_after": (2 * values(),)}
    assert codes(values(), values(), inputs_after=(2 * values(),), **arguments) == []
    assert codes(values(), values(), inputs_after=(values(),), **arguments) == ["MUTATED_INPUT"]
    assert codes(values(), values(), inputs_after=((2 * values())[:1],), **arguments) == ["MUTATED_INPUT"]


def test_bits_of_empty_and_scalar_tensors_are_compared() -> None:
    assert same_bits([torch.empty(0), torch.tensor(True)], [torch.empty(0), torch.tensor(True)])
    assert not same_bits([torch.tensor(1)], [torch.tensor(1.0)])
    assert not same_bits([torch.zeros(2)], [torch.zeros(2, 1)])
