"""The session that the families of one forward share: what it times, repeats, refuses and finds plausible."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.batched import PASS, sampled
from fastkernels.evaluation.e2e.families.draws import images, mixed
from tests.evaluation.e2e.tiny import TINY, Tiny


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=TINY)
def case(request) -> Tiny:
    return TINY[request.param]


def changed(outputs, change):
    return {name: value if name == PASS else change(value) for name, value in outputs.items()}


def test_only_what_the_unpatched_model_would_have_given_is_plausible(case):
    timed, judge = case.session(case.model()), case.session(case.model())
    passes = [timed.serve(case.workload).outputs for _ in range(4)]
    honest = passes[-1]
    noise = torch.Generator().manual_seed(0)
    wrong = {
        "zeros": changed(honest, torch.zeros_like),
        "garbage": changed(honest, lambda v: v.std() * torch.randn(v.shape, generator=noise)),
        "5% off": changed(honest, lambda v: 1.05 * v),
        "rows swapped": changed(honest, lambda v: v.roll(1, 0)),
        "the pass before": passes[-2] | {PASS: honest[PASS]},
        "three passes before, of the same draws": passes[0] | {PASS: honest[PASS]},
    }
    rounded = changed(honest, lambda v: v * (1 + 2e-3 * torch.randn(v.shape, generator=noise)))
    shares = {name: case.family.plausible(judge, case.workload, o)[0] for name, o in wrong.items()}
    assert case.family.plausible(judge, case.workload, honest)[0] == 1.0
    assert case.family.plausible(judge, case.workload, rounded)[0] == 1.0
    assert max(shares.values()) < 0.5, shares


def test_passes_are_the_same_in_every_arm_and_no_two_are_alike(case):
    one, two = case.session(case.model()), case.session(case.model())
    passes = [one.serve(case.workload).outputs for _ in range(5)]
    for first, second in zip(passes, [two.serve(case.workload).outputs for _ in range(5)], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    name = case.family.timed[0]
    rows = torch.cat([p[name].reshape(case.workload.requests, -1) for p in passes])
    assert len(rows.unique(dim=0)) == len(rows)


def test_a_pass_serves_every_request_and_times_every_batch(case):
    served = case.session(case.model()).serve(case.workload)
    batches = -(-case.workload.requests // case.workload.batch)
    assert served.requests == served.tokens == case.workload.requests
    assert served.steps == len(served.latency_ms) == batches
    assert min(served.latency_ms) > 0
    assert all(len(served.outputs[name]) == case.workload.requests for name in case.family.timed)


def test_check_inputs_are_no_timed_ones_and_no_other_in_float64(case):
    model = case.model()
    answer = case.session(model).answer()
    oracle = case.session(case.model().double()).answer()
    distances = case.family.distances(answer, oracle)
    assert next(iter(distances.values())).value < 1e-4  # other inputs would be further than rounding
    assert all(value.dtype == torch.float64 for value in oracle.values())
    name = case.family.timed[0]
    served = case.session(model).serve(case.workload).outputs[name]
    assert served.shape[1:] != answer[name].shape[1:] or not torch.equal(served[:4], answer[name][:4])


def spoilt(model: nn.Module, spoil) -> nn.Module:
    """The model with another forward, as a patch binds it."""
    own = model.forward

    def forward(self, *args, **kwargs):
        return spoil(own(*args, **kwargs))

    model.forward = MethodType(forward, model)
    return model


class Later(Tensor):
    """A tensor of another class, which could compute when it is read."""


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda logits: logits[:-1], "for 2 inputs"),
        (lambda logits: logits * float("nan"), "not finite"),
        (lambda logits: logits.as_subclass(Later), "not a plain tensor"),
    ],
    ids=["a row too few", "NaN", "a subclass"],
)
def test_a_spoilt_output_of_a_timed_call_is_refused(spoil, rule):
    case = TINY["vit"]

    def change(raw):
        raw.logits = spoil(raw.logits)
        return raw

    session = case.session(spoilt(case.model(), change))
    with pytest.raises(EvaluationError, match=f"Classification.test.*{rule}"):
        session.serve(case.workload)


def test_a_model_that_returns_early_after_some_calls_is_implausible():
    case = TINY["vit"]
    kept = []

    def early(raw):
        kept.append(raw)
        return kept[(len(kept) - 1) % 3] if len(kept) > 6 else raw

    session, judge = case.session(spoilt(case.model(), early)), case.session(case.model())
    shares = [case.family.plausible(judge, case.workload, session.serve(case.workload).outputs)[0] for _ in range(3)]
    assert shares[:2] == [1.0, 1.0] and shares[2] < 0.5


def test_a_compiled_session_gives_what_the_eager_one_gives():
    case = TINY["vit"]
    eager, compiled = (case.session(case.model(), mode=m, backend="eager") for m in ("eager", "default"))
    torch.testing.assert_close(compiled.answer(), eager.answer(), rtol=1e-4, atol=1e-5)
    assert case.family.plausible(eager, case.workload, compiled.serve(case.workload).outputs)[0] == 1.0


def test_mixed_inputs_keep_masks_and_marks_and_are_others_at_every_turn():
    rows = torch.arange(20).expand(2, -1)
    one = {"ids": rows, "mask": (rows < 15).long(), "seen": torch.ones(2, 20), "x": torch.eye(2)[:1]}
    two = one | {"ids": torch.where(rows > 0, 100 + rows, 0), "x": torch.eye(2)[1:]}
    turns = [mixed(one, two, turn=turn, seed=0) for turn in range(20)]
    for inputs in turns:
        assert torch.equal(inputs["mask"], one["mask"]) and torch.equal(inputs["seen"], one["seen"])
        assert (inputs["ids"][:, 0] == 0).all()
        assert 0 < (inputs["ids"] >= 100).sum() < 38
    x = torch.cat([inputs["x"] for inputs in turns])
    torch.testing.assert_close(x.norm(dim=1), torch.ones(20))
    assert torch.pdist(x).min() > 0.1
    assert len({tuple(inputs["ids"].flatten().tolist()) for inputs in turns}) == 20


def test_a_sample_of_a_large_row_is_at_the_same_places_every_time():
    values = images(2, 3, 40, 40, seed=0)
    assert sampled(values, 100).shape == (2, 100)
    assert torch.equal(sampled(values, 100), sampled(values.clone(), 100))
    assert torch.equal(sampled(values, 1 << 14), values)


def test_images_differ_from_one_another_as_wholes():
    means = images(64, 3, 32, 32, seed=0).mean((2, 3))
    assert means.std(0).min() > 0.2  # of white noise: 0.03
