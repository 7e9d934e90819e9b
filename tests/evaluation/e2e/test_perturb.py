"""Known wrongs go in at the size they are said to have, and come out bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastkernels.evaluation.e2e.perturb import int8_round_trip, perturb
from tests.conftest import tiny_llama


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounded", [True, False])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, rounded: bool) -> None:
    model = tiny_llama()
    model = (model.bfloat16() if rounded else model).to(dtype)
    before = _weights(model)
    for change in (lambda: perturb(model, 0.05, seed=1), lambda: int8_round_trip(model)):
        with change():
            inside = _weights(model)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert any(not torch.equal(inside[name], before[name]) for name in before)


def test_an_error_inside_restores_too() -> None:
    model = tiny_llama()
    before = _weights(model)
    with pytest.raises(ZeroDivisionError), perturb(model, 0.05, seed=1):
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_noise_is_the_asked_share_of_each_matrix_and_leaves_vectors() -> None:
    model = tiny_llama()
    before = _weights(model)
    with perturb(model, 0.05, seed=1):
        inside = _weights(model)
    for name, weight in before.items():
        if weight.dim() < 2:
            assert torch.equal(inside[name], weight)
        else:
            assert ((inside[name] - weight).std() / weight.std()).item() == pytest.approx(0.05, rel=0.1)


def test_the_noise_is_the_seeds() -> None:
    model = tiny_llama()
    with perturb(model, 0.05, seed=1):
        one = _weights(model)
    with perturb(model, 0.05, seed=1):
        assert all(torch.equal(p, one[name]) for name, p in model.named_parameters())
    with perturb(model, 0.05, seed=2):
        assert not all(torch.equal(p, one[name]) for name, p in model.named_parameters())


def test_int8_has_at_most_255_values_a_group_and_errs_by_half_a_step() -> None:
    linear = nn.Linear(130, 16)  # the last group is short
    before = linear.weight.detach().clone()
    with int8_round_trip(linear):
        inside = linear.weight.detach().clone()
    for group, wide in zip(inside.split(64, 1), before.split(64, 1), strict=True):
        scale = wide.abs().amax(1, keepdim=True) / 127
        whole = group / scale
        assert torch.allclose(whole, whole.round(), atol=1e-4)
        assert whole.abs().max() < 127.001
        assert ((group - wide).abs() <= scale / 2 * 1.001).all()
    assert torch.equal(linear.weight, before)


def test_int8_reaches_weights_in_channels_last_and_of_zeros() -> None:
    conv = nn.Conv2d(32, 8, 3)
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    conv.weight.data[0] = 0
    before = conv.weight.detach().clone()
    with int8_round_trip(conv):
        inside = conv.weight.detach().clone()
    assert not torch.equal(inside, before)
    assert torch.equal(inside[0], before[0])
    assert (inside - before).norm() / before.norm() < 0.01
    assert torch.equal(conv.weight, before)


def test_tied_weights_change_once() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    before = _weights(model)["model.embed_tokens.weight"]
    with perturb(model, 0.05, seed=1):
        change = model.lm_head.weight - before
        assert (change.std() / before.std()).item() == pytest.approx(0.05, rel=0.1)
