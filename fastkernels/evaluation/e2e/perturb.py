"""Known amounts of wrong, put into a model's weights and taken out exactly: what correctness is scaled by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

CONTROL = 0.05  # relative noise of the known-bad control
GROUP = 64
CHUNK = 1 << 24  # values edited at a time: 64 MiB in float32


def perturb(model: nn.Module, relative: float, *, seed: int) -> AbstractContextManager[None]:
    """While open, each weight has Gaussian noise of ``relative`` times the standard deviation of its parameter.

    Every floating parameter of two or more dimensions; norms and biases stay. They come back bit for bit.

    >>> linear = nn.Linear(4, 4); before = linear.weight.clone()
    >>> with perturb(linear, 0.05, seed=1): bool((linear.weight == before).all())
    False
    >>> bool((linear.weight == before).all())
    True
    """
    generators: dict[torch.device, torch.Generator] = {}

    def add_noise(weight: Tensor) -> None:
        device = weight.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        scale = relative * _std(weight)
        for rows in _chunks(weight):
            noise = torch.randn(rows.shape, generator=generator, device=device)
            wide = torch.promote_types(rows.dtype, torch.float32)
            rows.copy_(rows.to(wide) + scale * noise.to(wide))

    return _edited(model, add_noise)


def int8_round_trip(model: nn.Module) -> AbstractContextManager[None]:
    """While open, weights are as after int8 quantisation: symmetric, groups of 64 along the input axis, to nearest.

    The input axis is the last one; of kernels smaller than a group (convolutions) all axes but the first.
    """

    def quantise(weight: Tensor) -> None:
        flat = weight.flatten(0, -2) if weight.shape[-1] >= GROUP else weight.flatten(1)
        for rows in _chunks(flat):
            for group in rows.split(GROUP, dim=1):
                wide = group.to(torch.promote_types(group.dtype, torch.float32))
                scale = wide.abs().amax(1, keepdim=True) / 127
                whole = (wide / scale.clamp_min(torch.finfo(wide.dtype).tiny)).round()
                group.copy_(whole * scale)
        if flat.data_ptr() != weight.data_ptr():  # channels last: no view is flat
            weight.copy_(flat.view(weight.shape))

    return _edited(model, quantise)


@contextmanager
def _edited(model: nn.Module, edit: Callable[[Tensor], None]) -> Iterator[None]:
    """Edits in place, so that whatever holds the parameters sees it: tied weights, compiled graphs."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.inference_mode():
            for weight in model.parameters():
                if weight.is_floating_point() and weight.dim() >= 2 and weight.numel():
                    kept.append((weight, _copy(weight)))
                    edit(weight)
        yield
    finally:
        with torch.inference_mode():
            for weight, copy in kept:
                weight.copy_(copy)


def _copy(weight: Tensor) -> Tensor:
    """A copy that restores every bit: on the CPU, and in bfloat16 where the weight came from there."""
    if weight.dtype in (torch.float32, torch.float64):
        parts = list(_chunks(weight))
        if all(torch.equal(part.bfloat16().to(part.dtype), part) for part in parts):
            return weight.to("cpu", torch.bfloat16, copy=True)
    return weight.to("cpu", copy=True)


def _std(weight: Tensor) -> float:
    count = weight.numel()
    mean = sum(part.double().sum().item() for part in _chunks(weight)) / count
    return float((sum((part.double() - mean).square().sum().item() for part in _chunks(weight)) / count) ** 0.5)


def _chunks(weight: Tensor) -> tuple[Tensor, ...]:
    """Views of a few rows each."""
    return weight.split(max(1, CHUNK * weight.shape[0] // weight.numel()))
