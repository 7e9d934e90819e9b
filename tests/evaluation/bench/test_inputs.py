"""Inputs that a candidate is judged on: enough of them, different, secret by their seed, and fair."""

from __future__ import annotations

import pytest
import torch

from fastkernels.evaluation.bench.inputs import Drawn, Referee, clone, drawn_inputs, not_benchable
from fastkernels.evaluation.bench.judge import judge_drawn, same_bits
from fastkernels.evaluation.bench.packed import pack, unpack, unpackable
from fastkernels.tasks import Case, Task, all_tasks, get_task
from fastkernels.tasks.tensors import tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEVELS_1_TO_3 = [t for t in all_tasks().values() if t.level < 4]


def small(task: Task, name: str | None = None) -> Case:
    return next(c for c in task.cases() if not c.production and name in (None, c.name))


def drawn(task: str, case: str, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Drawn]:
    return list(drawn_inputs(get_task(task), small(get_task(task), case), dtype=dtype, device="cpu", seed=seed))


def names(found: list[Drawn]) -> set[str]:
    return {d.name for d in found}


@torch.no_grad()
def failures(task: Task, implementation: type, inputs: list[Drawn], dtype: torch.dtype, seed: int) -> list[str]:
    """Failures of an implementation with the same parameters as the drawn references have."""
    found: list[str] = []
    for one in inputs:
        module = task.build(one.case, implementation=implementation, seed=seed, dtype=dtype)
        arguments = clone(one.arguments)
        outputs = pack(module(*unpack(arguments)))
        found += map(str, judge_drawn(one, outputs, arguments, task=task, dtype=dtype).failures)
    return found


@pytest.mark.parametrize("task", LEVELS_1_TO_3, ids=lambda t: t.name)
def test_every_task_has_five_random_draws_and_its_witness_passes_them_all(task: Task) -> None:
    dtype = torch.bfloat16
    inputs = list(drawn_inputs(task, small(task), dtype=dtype, device="cpu", seed=11))
    assert sum(d.family == "random" for d in inputs) == 5
    assert any(d.family == "hidden" for d in inputs)
    assert failures(task, task.witness, inputs, dtype, seed=11) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", all_tasks().values(), ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_case_gives_inputs_that_the_witness_passes(task: Task, dtype: torch.dtype) -> None:
    for case in (c for c in task.cases() if not c.production):
        inputs = list(drawn_inputs(task, case, dtype=dtype, device="cpu", seed=12))
        assert inputs, case.name
        assert failures(task, task.witness, inputs, dtype, seed=12) == [], case.name


def test_the_seed_decides_all_and_another_seed_changes_all_random_draws() -> None:
    one, same, other = (drawn("rms_norm", "rows_residual", seed=s) for s in (1, 1, 2))
    assert [d.name for d in one] == [d.name for d in same]
    assert all(same_bits(a.arguments, b.arguments) for a, b in zip(one, same, strict=True))
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.family == "random"]
    assert not any(same_bits(a.arguments, b.arguments) for a, b in pairs)


def test_no_two_draws_of_a_case_have_the_same_contents() -> None:
    inputs = drawn("rms_norm", "rows")
    assert not any(same_bits(a.arguments, b.arguments) for i, a in enumerate(inputs) for b in inputs[:i])


def test_structured_families_and_hidden_shapes_are_there() -> None:
    found = names(drawn("rms_norm", "rows_residual"))
    assert found >= {"zeros", "ones", "all_equal", "tiny", "denormal", "one_hot", "clustered", "mixed_scales", "large"}
    assert found >= {f"rows_3_as_{n}" for n in (1, 0, 17, 63)}


def test_sizes_that_the_constructor_fixes_are_never_changed() -> None:
    for one in drawn("rms_norm", "batch"):
        assert one.arguments[0].shape[-1] == 96


def test_queries_are_never_made_longer_than_their_keys() -> None:
    inputs = drawn("attention", "gqa_decode")
    assert all(d.arguments[0].shape[2] <= d.arguments[1].shape[2] for d in inputs)
    assert "sequence_11_as_63" in names(inputs)


def test_a_mask_follows_the_length_that_it_masks() -> None:
    inputs = {d.name: d for d in drawn("encoder_attention", "bool_mask")}
    x, mask = inputs["sequence_9_as_17"].arguments
    assert (x.shape[1], mask.shape[-1]) == (17, 17)


def test_indices_are_also_drawn_as_imbalanced_as_they_can_be() -> None:
    one = next(d for d in drawn("fused_experts", "silu") if d.name == "one_index")
    ids = one.arguments[2]
    assert (ids == ids[:1]).all() and ids.shape[0] > 1
    assert ids.unique().numel() == ids.shape[1]  # each token still has different experts


def test_no_tie_between_experts_is_judged() -> None:
    """Which of two equal logits is kept is nobody's mistake: equal inputs and zeros are left out for routers."""
    for one in drawn("topk_softmax", "few"):
        if one.family != "random" and one.name != "equal_rows" and one.arguments[0].numel():
            assert all(len(row.unique()) == len(row) for row in one.arguments[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_routers_random_draws_do_not_turn_on_a_rounding(dtype: torch.dtype) -> None:
    inputs = drawn("moe_router", "sigmoid", dtype)
    assert [d.unstable for d in inputs if d.family == "random"] == [False] * 5


def test_what_the_reference_cannot_hold_is_not_asked() -> None:
    for one in drawn("squared_relu", "rows", torch.float16):
        assert all(torch.isfinite(t).all() for t in tensors(one.expected))


def test_a_case_without_rows_gives_one_draw() -> None:
    assert [d.name for d in drawn("silu", "empty")] == ["empty"]


def test_the_referees_drawing_and_judging_leave_the_arguments_as_they_were() -> None:
    task = get_task("fused_add_rms_norm")
    referee = Referee(task, small(task), dtype=torch.float32, device="cpu", seed=3)
    arguments = referee.draw(4)
    before = clone(arguments)
    assert referee.expect(arguments, name="one") is not None
    assert same_bits(before, arguments)


def test_a_callable_argument_travels_as_its_class_and_its_tensors() -> None:
    task = get_task("served_attention")
    arguments = small(task).draw(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)
    packed = pack(arguments)
    assert len(tensors(packed)) == 4 and unpackable(packed) is None
    assert not_benchable(task, small(task)) is None
    module = task.build(small(task))
    with torch.no_grad():
        assert torch.equal(module(*arguments), module(*unpack(packed)))


def test_structured_contents_reach_the_tensors_inside_a_callable() -> None:
    zeros = next(d for d in drawn("served_attention", "gqa") if d.name == "zeros")
    assert not any(t.any() for t in tensors(zeros.arguments) if t.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("cheat", [c for t in LEVELS_1_TO_3 for c in t.anti_witnesses], ids=lambda c: c.__qualname__)
def test_every_cheat_of_every_task_fails_on_the_drawn_inputs(cheat: type) -> None:
    task = next(t for t in LEVELS_1_TO_3 if cheat in t.anti_witnesses)
    for case in (c for c in task.cases() if not c.production):
        inputs = drawn_inputs(task, case, dtype=torch.float32, device="cpu", seed=13)
        if any(_fails(task, cheat, one) for one in inputs):
            return
    pytest.fail(f"{task.name}: {cheat.__name__} passes every input")


def _fails(task: Task, cheat: type, one: Drawn) -> bool:
    try:
        return bool(failures(task, cheat, [one], torch.float32, seed=13))
    except (RuntimeError, ValueError, IndexError):
        return True


def test_every_tensor_of_every_case_is_made_on_the_device_that_is_asked_for() -> None:
    """So that a GPU's own generator can draw them: no case means one of them to stay on the CPU."""
    for task in LEVELS_1_TO_3:
        arguments = pack(small(task).draw(torch.Generator().manual_seed(0), torch.device("meta"), torch.bfloat16))
        assert {t.device.type for t in tensors(arguments)} <= {"meta"}, task.name


def test_a_reference_without_room_is_no_word_about_the_input() -> None:
    class Full(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("no room")

    task = get_task("relu")
    referee = Referee(task, small(task), dtype=torch.float32, device="cpu", seed=0, reference=Full())
    with pytest.raises(torch.OutOfMemoryError):
        referee.expect(referee.draw(1), name="one")
