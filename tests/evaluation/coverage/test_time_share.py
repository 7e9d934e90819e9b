"""Where the time of a model passes, on models whose answer is known beforehand."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

import fastkernels
from fastkernels.errors import EvaluationError
from fastkernels.evaluation.coverage.time_share import NO_MODULE, outermost, time_share

X = torch.zeros(1)


class Sleep(nn.Module):
    """Takes a known time, and calls no operator."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.seconds = milliseconds / 1e3

    def forward(self, x):
        time.sleep(self.seconds)
        return x


class Nap(Sleep):
    """The same by another class name."""


class Block(nn.Module):
    """Two parts and 10 ms of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Sleep(30), Nap(40)

    def forward(self, x):
        time.sleep(0.01)
        return self.second(self.first(x))


class Model(nn.Module):
    """Two blocks: 160 ms a call."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for b in self.blocks:
            x = b(x)
        return x


def close(value: float):
    return pytest.approx(value, abs=0.04)


def test_time_is_that_of_the_modules_and_the_rest_is_by_class():
    model = Model()
    found = time_share(model, ["blocks.0.first", "blocks.1.first"], lambda: model(X))
    assert found.clock == "cpu"
    assert found.inside == {"blocks.0.first": close(30 / 160), "blocks.1.first": close(30 / 160)}
    assert (found.outside["Nap"], found.outside["Block"]) == (close(80 / 160), close(20 / 160))
    assert list(found.outside)[:2] == ["Nap", "Block"]
    assert sum(found.inside.values()) + sum(found.outside.values()) == pytest.approx(1.0)


def test_what_lies_within_a_site_counts_once():
    model = Model()
    found = time_share(model, ["blocks.0", "blocks.0.first", "blocks.1.second"], lambda: model(X))
    assert found.inside == {"blocks.0": close(80 / 160), "blocks.1.second": close(40 / 160)}
    assert sum(found.inside.values()) + sum(found.outside.values()) == pytest.approx(1.0)


def test_the_whole_model_is_all_of_its_time_and_no_more():
    model = Model()

    def run():
        time.sleep(0.04)
        model(X)

    found = time_share(model, [""], run)
    assert found.inside == {"": close(0.8)}
    assert found.outside == {NO_MODULE: close(0.2)}


def test_eight_classes_at_most_are_named_the_largest_first():
    classes = [type(f"Sleep{i}", (Sleep,), {}) for i in range(11)]
    model = nn.Sequential(*(cls(2 + 3 * i) for i, cls in enumerate(classes)))
    outside = time_share(model, [], lambda: model(X)).outside
    assert [name for name in outside if name != NO_MODULE] == [f"Sleep{i}" for i in range(10, 2, -1)]


def test_a_module_that_is_not_called_has_no_share():
    model = Model()
    model.unused = Sleep(1)
    assert time_share(model, ["unused"], lambda: model(X)).inside == {"unused": 0.0}


def state_of(model: nn.Module) -> list[object]:
    return [
        {k: dict(v) if k.endswith("hooks") or "hooks_" in k else v for k, v in vars(m).items()} for m in model.modules()
    ]


class Broken(RuntimeError):
    """Raised by a call under way."""


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_model(fails):
    model, calls = Model(), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.copy(state_of(model))

    def run():
        model(X)
        if fails and len(calls) > 1:
            raise Broken

    if fails:
        with pytest.raises(Broken):
            time_share(model, ["blocks.0"], run)
    else:
        time_share(model, ["blocks.0"], run)
    assert state_of(model) == before
    assert calls


def test_a_part_that_raises_and_is_caught_by_the_model_closes_its_range():
    class Fails(Sleep):
        def forward(self, x):
            super().forward(x)
            raise Broken

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails, self.instead = Fails(20), Nap(60)

        def forward(self, x):
            try:
                return self.fails(x)
            except Broken:
                return self.instead(x)

    model = Tries()
    found = time_share(model, ["fails"], lambda: model(X))
    assert (found.inside["fails"], found.outside["Nap"]) == (close(0.25), close(0.75))


def test_a_patched_model_is_refused(llama, ids):
    with (
        fastkernels.patch(llama, "reference", select="model.norm", verify=False),
        pytest.raises(EvaluationError, match=r"is patched \(at model\.norm\).*unpatch"),
    ):
        time_share(llama, [], lambda: llama(ids))


def test_a_run_that_calls_something_else_is_refused():
    with pytest.raises(EvaluationError, match=r"run\(\) calls no module of this Model"):
        time_share(Model(), ["blocks.0"], lambda: Sleep(1)(X))


def test_a_path_that_is_not_there_is_refused():
    with pytest.raises(EvaluationError, match=r"Model has no module at blocks\.7"):
        time_share(Model(), ["blocks.7"], lambda: None)


def test_outermost_of_the_whole_model_is_the_whole_model():
    assert outermost(["", "a", "b.c"]) == [""]


# -- on a GPU ----------------------------------------------------------------------------------------------------------


class Products(nn.Module):
    """``count`` products of 2048 x 2048 matrices."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.randn(2048, 2048) / 2048**0.5)

    def forward(self, x):
        for _ in range(self.count):
            x = x @ self.weight
        return x


class OtherProducts(Products):
    """The same by another class name."""


@pytest.mark.gpu
@torch.inference_mode()
def test_device_time_is_charged_to_what_launched_it_and_never_twice():
    model = nn.Sequential(nn.Sequential(Products(6), Products(2)), Products(4), OtherProducts(8)).cuda()
    x = torch.randn(2048, 2048, device="cuda")
    found = time_share(model, ["0", "0.1", "1"], lambda: model(x))
    assert found.clock == "device"
    assert found.inside == {"0": close(8 / 20), "1": close(4 / 20)}
    assert found.outside == {"OtherProducts": close(8 / 20)}
    within = time_share(model, ["0.0"], lambda: model(x))
    assert within.inside == {"0.0": close(6 / 20)}


@pytest.mark.gpu
@torch.inference_mode()
def test_a_slow_host_does_not_count_on_the_device():
    model = nn.Sequential(Products(3), Sleep(50), Products(3)).cuda()
    x = torch.randn(2048, 2048, device="cuda")
    found = time_share(model, ["0"], lambda: (model(x), x @ x, x @ x))
    assert found.inside == {"0": close(3 / 8)}
    assert (found.outside["Products"], found.outside[NO_MODULE]) == (close(3 / 8), close(2 / 8))


@pytest.mark.gpu
@torch.inference_mode()
def test_a_kernel_that_no_operator_launches_counts_too():
    triton = pytest.importorskip("triton")
    from tests.evaluation.coverage.spin_kernel import spin

    class Spins(nn.Module):
        def forward(self, x):
            spin[(1,)](x, 200_000)
            return x

    model = nn.Sequential(Spins(), Products(1)).cuda()
    x = torch.randn(2048, 2048, device="cuda")
    assert triton is not None
    found = time_share(model, ["0"], lambda: model(x))
    assert found.inside["0"] > 0.5
