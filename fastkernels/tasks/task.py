"""What a task is: the semantics, the inputs, the accuracy and the cost that any implementation is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fastkernels.tasks.accuracy import ELEMENTWISE, Accuracy
from fastkernels.tasks.interface import Interface

Draw = Callable[[torch.Generator, torch.device, torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One member of an input family: how to build the interface and how to draw the arguments of ``forward``.

    ``draw(generator, device, dtype)`` returns the positional arguments; parameters are filled by ``Task.build``.
    ``production`` marks shapes seen in serving (large); the others are small and run in every test.
    """

    name: str
    init: Mapping[str, Any] = field(default_factory=dict)
    draw: Draw
    production: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The least work that the task can be done with: bytes that must cross memory, floating-point operations."""

    bytes: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: name, level, interface (= reference semantics) and everything an implementation is judged by.

    ``stems`` are further file names under which candidates of this task are found; ``parts`` the lower tasks that
    the reference is built from, by name; ``mutates`` the arguments that ``forward`` writes to; ``witness`` an honest
    independent implementation that passes; ``anti_witnesses`` cheap cheats that must fail.
    """

    name: str
    level: int
    family: str
    interface: type[Interface]
    cases: Callable[[], Iterable[Case]]
    cost: Callable[..., Cost]
    witness: type[torch.nn.Module]
    anti_witnesses: tuple[type[torch.nn.Module], ...]
    accuracy: Accuracy = ELEMENTWISE
    stems: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    mutates: tuple[str, ...] = ()

    def build(
        self,
        case: Case,
        *,
        implementation: type[torch.nn.Module] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> torch.nn.Module:
        """An implementation (the reference by default) for ``case``, its parameters drawn from ``seed``.

        The same seed gives every implementation the same parameter values, whatever its own initialisation does.
        """
        with torch.device(device):
            module = (implementation or self.interface)(**case.init)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(module.named_parameters()):
                fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
                values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
                parameter.copy_(values + 1.0 if parameter.dim() == 1 else values)
        return module.to(dtype).eval()


def element_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the given tensors, each read or written once."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
