"""What SGLang does around a product: the engine's own code runs, with a product that is there already.

With tensor parallelism a layer's ``forward`` also scales, reduces, gathers, or leaves that to a later kernel, by its
arguments, by flags of the step, and by version. A candidate replaces the product and nothing of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


class Given:
    """A quantisation method whose product was computed before."""

    def __init__(self, product: torch.Tensor) -> None:
        self.product = product

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.product


class NoShortcut:
    """In place of what computes several products in one (since 0.5.23)."""

    def can_run(self, *args: Any) -> bool:
        return False


class Call(tuple[Any, ...]):
    """An interface's positional arguments, and the host's own call that they were taken from."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, call: tuple[Any, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        made = cls(call)
        made.args, made.kwargs = args, kwargs
        return made


def image(module: nn.Module, **replaced: Any) -> nn.Module:
    """``module`` with other attributes, sharing everything else; the original does not notice."""
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__.pop("forward", None)
    made.__dict__.update(replaced)
    return made


def finish_linear(module: nn.Module, product: torch.Tensor, call: Call) -> Any:
    """What ``module``, a parallel linear, returns for a call whose product (its rank's part) is ``product``."""
    return type(module).forward(image(module, quant_method=Given(product)), *call.args, **call.kwargs)


def finish_mlp(module: nn.Module, down: str, product: torch.Tensor, call: Call) -> Any:
    """What ``module``, a gated MLP, returns for a call whose last product, that of its child ``down``, is ``product``.

    The children before it pass their input on.
    """
    last = module._modules[down]
    assert last is not None
    children: dict[str, Callable[..., Any]] = dict.fromkeys(module._modules, _nothing)
    for name, child in module._modules.items():
        if hasattr(child, "quant_method"):
            children[name] = _nothing_and_no_bias
    children[down] = partial(type(last).forward, image(last, quant_method=Given(product)))
    own = {name: NoShortcut() for name in ("dual_gemm",) if name in vars(module)}
    return type(module).forward(image(module, _modules=children, **own), *call.args, **call.kwargs)


def _nothing(x: torch.Tensor) -> torch.Tensor:
    return x


def _nothing_and_no_bias(x: torch.Tensor) -> tuple[torch.Tensor, None]:
    return x, None


@contextmanager
def unreduced(row_parallel: nn.Module) -> Iterator[None]:
    """No reduction over ranks: each rank's probes compare its own part, and wait for no other."""
    own = row_parallel.__dict__
    before = own.get("reduce_results")
    if before is None:
        yield
        return
    own["reduce_results"] = False
    try:
        yield
    finally:
        own["reduce_results"] = before
