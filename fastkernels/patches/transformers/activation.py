"""Activations: leaf modules whose values from -40 to 40 are those of GELU, quick GELU, SiLU, ReLU or its square."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.patches.probe import quiet
from fastkernels.patches.recognise import PLAIN, Host
from fastkernels.patches.site import Proposal, one_tensor
from fastkernels.patches.transformers.norms import rows


@dataclass(frozen=True)
class Kind:
    """An activation: the function, and the task with the constructor facts that name it."""

    function: Callable[[torch.Tensor], torch.Tensor]
    task: str
    facts: Mapping[str, Any] = field(default_factory=dict)


# By the names that task ``mlp`` gives them.
KINDS: Mapping[str, Kind] = {
    "gelu": Kind(F.gelu, "gelu", {"approximate": "none"}),
    "gelu_tanh": Kind(lambda x: F.gelu(x, approximate="tanh"), "gelu", {"approximate": "tanh"}),
    "quick_gelu": Kind(lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
    "relu": Kind(F.relu, "relu"),
    "silu": Kind(F.silu, "silu"),
    "squared_relu": Kind(lambda x: F.relu(x).square(), "squared_relu"),
}
OWN_OF_MODULE = frozenset(vars(nn.Module()))
_known: dict[tuple[Any, ...], str | None] = {}


def activation(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules without parameters, buffers or children; one that works in place is somebody's side effect and stays."""
    kind = kind_of(module)
    if kind is None:
        return
    yield Proposal(
        task=KINDS[kind].task,
        facts=KINDS[kind].facts,
        state={},
        enter=one_tensor,
        scenarios=rows(64),
        evidence="schema",
        reads=tuple(_own_attributes(module)),
    )


def kind_of(module: nn.Module) -> str | None:
    """Which activation a module computes; found once for each class and values of its attributes."""
    if module._modules or module._parameters or module._buffers or not takes_one_tensor(type(module)):
        return None
    own = _own_attributes(module)
    if not all(isinstance(value, PLAIN) or callable(value) for value in own.values()):
        return None
    key = (type(module), *((name, _identity(value)) for name, value in own.items()))
    if key not in _known:
        with quiet(module):
            _known[key] = kind_of_function(functools.partial(type(module).forward, module))
    return _known[key]


def kind_of_function(function: Callable[..., Any]) -> str | None:
    """The name in ``KINDS`` of the activation that ``function`` computes, by its values."""
    x = torch.linspace(-40.0, 40.0, 4001)
    given = x.clone()
    with torch.no_grad():
        try:
            y = function(given)
        except Exception:  # noqa: BLE001 - any callable may be tried; one that raises is not an activation
            return None
    if not isinstance(y, torch.Tensor) or y.shape != x.shape or y.dtype != x.dtype or not torch.equal(given, x):
        return None
    close = (n for n, kind in KINDS.items() if torch.allclose(y, kind.function(x), rtol=1e-5, atol=1e-6))
    return next(close, None)


@functools.cache
def takes_one_tensor(cls: type[nn.Module]) -> bool:
    """Whether ``forward`` needs exactly one argument."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return bool(named) and named[0].default is named[0].empty and all(p.default is not p.empty for p in named[1:])


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {n: v for n, v in vars(module).items() if n not in OWN_OF_MODULE and n != "forward"}


def _identity(value: Any) -> Any:
    """Equal for attributes that make two modules of one class compute the same."""
    if isinstance(value, functools.partial):
        return (value.func, repr(value.args), repr(value.keywords))
    return getattr(value, "__func__", value)
