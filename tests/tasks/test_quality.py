"""Tasks are worth winning in every dtype, and each rule that says so finds the task that breaks it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkernels.tasks import Case, Task, all_tasks, get_task
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.quality import BY_NATURE, NO_CHEATS, Trial, case_weaknesses, weaknesses
from fastkernels.tasks.tensors import tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("task", all_tasks().values(), ids=list(all_tasks()))
def test_every_task_is_worth_winning(task: Task, dtype: torch.dtype) -> None:
    assert [str(w) for w in weaknesses(task, dtype=dtype)] == []


def elements(task: Task, case: Case) -> int:
    """Of arguments and parameters, without the memory for them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = case.draw(torch.Generator(), torch.device("cpu"), torch.bfloat16)
        return sum(t.numel() for t in (*tensors(arguments), *task.interface(**case.init).parameters()))


def vary_as_production(most: int, device: str) -> None:
    """The production cases up to a size; the rest of the rules is shown by small ones."""
    for task in all_tasks().values():
        for case in task.cases():
            if case.production and elements(task, case) <= most:
                trial = Trial.run(task, case, dtype=torch.bfloat16, device=device)
                assert [str(w) for w in case_weaknesses(trial)] == []


@pytest.mark.slow
def test_smaller_production_cases_vary_too() -> None:
    vary_as_production(5_000_000, "cpu")


@pytest.mark.gpu
def test_larger_production_cases_vary_too() -> None:
    vary_as_production(300_000_000, "cuda")


@pytest.mark.parametrize(("task", "case"), BY_NATURE)
def test_an_exempt_edge_is_a_case_that_breaks_a_rule_in_some_dtype(task: str, case: str, monkeypatch) -> None:
    monkeypatch.setattr("fastkernels.tasks.quality.BY_NATURE", {})
    chosen = [c for c in get_task(task).cases() if c.name == case]
    found = [w for dtype in DTYPES for w in weaknesses(get_task(task), dtype=dtype, cases=chosen) if w.case == case]
    assert found


@pytest.mark.parametrize(("task", "cheat"), NO_CHEATS)
def test_an_exempt_cheat_passes_where_it_is_exempt_and_fails_elsewhere(task: str, cheat: str, monkeypatch) -> None:
    exempt = NO_CHEATS[task, cheat]
    monkeypatch.setattr("fastkernels.tasks.quality.NO_CHEATS", {})
    for dtype in DTYPES:
        passes = [w for w in weaknesses(get_task(task), dtype=dtype) if w.rule == "anti-witness" and cheat in w.detail]
        assert bool(passes) == (dtype in exempt)


# Cheats that are the reference bit for bit in a dtype, which no rule can tell from it there, and why.
SAME = {
    ("embedding", "RoundsTheRows", torch.bfloat16),  # rows are in bfloat16 already
    ("linear", "HalfPrecision", torch.bfloat16),  # so are the factors
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_cheat_is_excused_as_the_reference_itself_but_those_that_round_to_the_dtype_at_hand(dtype) -> None:
    found = set()
    for task in all_tasks().values():
        trials = [Trial.run(task, case, dtype=dtype) for case in task.cases() if not case.production]
        for cheat in task.anti_witnesses:
            built = ((t, t.task.build(t.case, implementation=cheat, dtype=dtype)) for t in trials)
            if all(all(map(torch.equal, t.of(module), t.outputs)) for t, module in built):
                found.add((task.name, cheat.__name__, dtype))
    assert found == {excused for excused in SAME if excused[2] == dtype}


# Each rule, on a task made to break it


def rules(task: Task, *cases: Case, dtype: torch.dtype = torch.float32) -> set[str]:
    return {w.rule for w in weaknesses(task, cases=cases, dtype=dtype)}


def linear(draw, implementation: type = Linear, **facts) -> tuple[Task, Case]:
    task = dataclasses.replace(get_task("linear"), interface=implementation, witness=implementation, anti_witnesses=())
    return task, Case(name="made", init={"input_size": 16, "output_size": 8, **facts}, draw=draw)


def rows(g, device, dtype):
    return (torch.randn(6, 16, generator=g).to(device, dtype),)


def test_a_sound_case_breaks_no_rule() -> None:
    assert rules(*linear(rows)) == set()


def test_a_wrong_witness_is_found() -> None:
    class HalfTheWork(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    task, case = linear(rows)
    assert rules(dataclasses.replace(task, witness=HalfTheWork), case) == {"witness"}


def test_a_witness_of_another_shape_is_found() -> None:
    class Squeezed(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[0]

    task, case = linear(rows)
    assert rules(dataclasses.replace(task, witness=Squeezed), case) == {"witness"}


def test_a_cheat_that_no_case_catches_is_found() -> None:
    class SkipsTheBias(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight) + (0 if self.bias is None else self.bias * (1 + 1e-7))

    task, case = linear(rows)
    assert rules(dataclasses.replace(task, anti_witnesses=(SkipsTheBias,)), case) == {"anti-witness"}


def test_a_cheat_that_is_the_reference_in_this_dtype_is_none() -> None:
    class Narrow(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = None if self.bias is None else self.bias.bfloat16()
            return F.linear(x.bfloat16(), self.weight.bfloat16(), bias).to(x.dtype)

    task, case = linear(rows)
    assert rules(dataclasses.replace(task, anti_witnesses=(Narrow,)), case, dtype=torch.bfloat16) == set()


def test_an_input_that_does_not_matter_is_found() -> None:
    class Blind(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape))

    assert rules(*linear(rows, Blind)) == {"input"}


def test_an_optional_input_that_may_be_left_out_is_found() -> None:
    def draw(g, device, dtype):
        return torch.randn(6, 16, generator=g).to(device, dtype), torch.zeros(6, 16, device=device, dtype=dtype)

    class Adds(Linear):
        def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x if more is None else x + more)

    assert rules(*linear(draw, Adds)) == {"input"}


def test_a_weight_that_does_not_matter_is_found() -> None:
    class Unbiased(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight)

    assert rules(*linear(rows, Unbiased)) == {"weight"}


def test_equal_rows_are_found() -> None:
    def draw(g, device, dtype):
        return (torch.randn(1, 16, generator=g).expand(6, 16).to(device, dtype),)

    assert rules(*linear(draw)) == {"axis"}


def test_rows_that_differ_by_less_than_the_dtypes_accuracy_are_found_in_that_dtype_only() -> None:
    def draw(g, device, dtype):
        x = torch.randn(1, 64, generator=g) + 1e-3 * torch.randn(6, 64, generator=g)
        return (x.to(device, dtype),)

    task = dataclasses.replace(get_task("rms_norm"), anti_witnesses=())
    case = Case(name="made", init={"hidden_size": 64}, draw=draw)
    assert rules(task, case) == set()
    assert rules(task, case, dtype=torch.bfloat16) == {"axis"}


def test_an_output_that_overflows_is_found() -> None:
    def draw(g, device, dtype):
        return ((torch.randn(6, 16, generator=g) * 1e5).to(device, dtype),)

    assert "range" in rules(*linear(draw), dtype=torch.float16)


def test_an_output_of_mostly_one_value_is_found() -> None:
    class Rectified(RMSNorm):
        def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            return F.relu(super().forward(x) - 2.0)

    def draw(g, device, dtype):
        return (torch.randn(40, 64, generator=g).to(device, dtype),)

    task = dataclasses.replace(get_task("rms_norm"), interface=Rectified, witness=Rectified, anti_witnesses=())
    case = Case(name="made", init={"hidden_size": 64, "has_weight": False}, draw=draw)
    assert rules(task, case) == {"range"}


def test_one_output_that_is_hard_to_hit_does_not_excuse_another() -> None:
    task = get_task("moe_router")
    case = next(c for c in task.cases() if c.name == "softmax_bias")
    trial = Trial.run(task, case, dtype=torch.bfloat16)
    logits, weights, ids = trial.outputs
    assert not trial.accepts([logits, weights.roll(1, 0), ids])
