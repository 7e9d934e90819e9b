"""Gradients of an op: through the task's reference, or through the candidate where it declares that it trains.

Both run the forward again from its inputs, so nothing but the inputs is kept between the passes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._library.autograd import Info, make_autograd_impl
from torch._ops import OpOverload

from fastkernels.errors import LoweringError
from fastkernels.runtime.schema import tensors_in

Run = Callable[[Sequence[Any], Sequence[torch.Tensor]], Any]
Body = Callable[..., Any]
_AUTOGRAD = ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor")


class Packed:
    """The arguments of an op call as tensors and the rest, so that autograd can keep the tensors."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.tensors: list[torch.Tensor] = []
        self.places: list[Any] = [self._put(a) for a in arguments]

    def _put(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.tensors.append(value)
            return None
        if isinstance(value, (list, tuple)) and all(isinstance(v, torch.Tensor) for v in value):
            self.tensors += value
            return range(len(value))
        return (value,)

    def unpack(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """The arguments again, with ``tensors`` (or what there is for each) in the place of those packed."""
        rest = iter(tensors)
        return [
            next(rest) if place is None else [next(rest) for _ in place] if isinstance(place, range) else place[0]
            for place in self.places
        ]

    def spread(self, needs: Sequence[Any]) -> list[bool]:
        """Autograd's ``needs_input_grad``, nested as the arguments are, for each packed tensor."""
        flat: list[bool] = []
        for place, need in zip(self.places, needs, strict=True):
            if place is None:
                flat.append(need)
            elif isinstance(place, range):
                flat += need if isinstance(need, (list, tuple)) else [need] * len(place)
        return flat


def gradients(
    run: Run, packed: Packed, tensors: Sequence[torch.Tensor], needs: Sequence[bool], given: Sequence[Any]
) -> list[torch.Tensor | None]:
    """Gradients of ``run`` for the tensors in ``needs``, from those of its results; None for the others."""
    leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
    with torch.enable_grad():
        *call, state = packed.unpack(leaves)
        results = tensors_in(run(call, state))
    pairs = [(r, g) for r, g in zip(results, given, strict=True) if r.requires_grad and g is not None]
    wanted = [leaf for leaf, n in zip(leaves, needs, strict=True) if n]
    found = iter(
        torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        if pairs and wanted
        else [None] * len(wanted)
    )
    return [next(found) if n else None for n in needs]


def register(library: torch.library.Library, name: str, op: OpOverload, body: Body, semantics: Run) -> None:
    """Registers the backward of ``op`` through ``semantics``: traced into the joint graph, fused there.

    ``body`` is what the op runs on real tensors.
    """

    def backward(packed: Packed, tensors: Sequence[torch.Tensor], needs: list[bool], given: Sequence[Any]) -> list[Any]:
        return gradients(semantics, packed, tensors, needs, given)

    _register(library, name, op, body, _differentiated(op, backward))


def register_opaque(
    library: torch.library.Library, name: str, arguments: str, op: OpOverload, body: Body, run: Run
) -> None:
    """Registers the backward of ``op`` through the candidate itself: one more op, ``name_backward``.

    ``arguments`` are those of the op's schema.
    """
    library.define(f"{name}_backward({arguments}, Tensor?[] fk_gradients, bool[] fk_needs) -> Tensor[]")

    def differentiate(*arguments: Any) -> list[torch.Tensor]:
        *forward, given, needs = arguments
        packed = Packed(forward)
        # An op's body runs below autograd; this one has to record.
        exclude = torch._C._dispatch_tls_local_exclude_set()
        for key in _AUTOGRAD:
            exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
        with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude):
            found = gradients(run, packed, packed.tensors, needs, given)
        wanted = [t for t, n in zip(packed.tensors, needs, strict=True) if n]
        found = [g for g, n in zip(found, needs, strict=True) if n]
        return [torch.zeros_like(t) if g is None else g.contiguous() for t, g in zip(wanted, found, strict=True)]

    def fake(*arguments: Any) -> list[torch.Tensor]:
        *forward, _, needs = arguments
        wanted = [t for t, n in zip(Packed(forward).tensors, needs, strict=True) if n]
        return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in wanted]

    library.impl(f"{name}_backward", differentiate, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{library.ns}::{name}_backward", fake, lib=library)
    other = getattr(getattr(torch.ops, library.ns), f"{name}_backward").default

    def backward(packed: Packed, tensors: list[torch.Tensor], needs: list[bool], given: list[Any]) -> list[Any]:
        found = iter(other(*packed.unpack(tensors), given, needs))
        return [next(found) if n else None for n in needs]

    _register(library, name, op, body, _differentiated(op, backward))


def refuse(library: torch.library.Library, name: str, op: OpOverload, body: Body, why: str) -> None:
    """Registers an error in the place of a backward: without one, gradients would be missing without a word."""

    def raises(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        raise LoweringError(f"{op}: {why}")

    _register(library, name, op, body, raises)


def _traced() -> int:
    """Bits of a dispatch key set that say that fakes, proxies or other watchers are below autograd."""
    keys = (torch._C.DispatchKey.Python, torch._C.DispatchKey.Functionalize)
    return functools.reduce(lambda bits, key: bits | torch._C.DispatchKeySet(key).raw_repr(), keys, 0)


def _register(library: torch.library.Library, name: str, op: OpOverload, body: Body, differentiated: Body) -> None:
    below, traced = torch._C._after_autograd_keyset, _traced()

    def kernel(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return differentiated(keyset, *arguments)
        if keyset.raw_repr() & traced:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & below, *arguments)
        return body(*arguments)  # nothing to record and nobody to tell: a second dispatch would cost 8 us

    library.impl(name, kernel, "Autograd", with_keyset=True)


def _differentiated(op: OpOverload, backward: Callable[..., list[Any]]) -> Body:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        packed = Packed(inputs)
        ctx.save_for_backward(*packed.tensors)
        packed.tensors = []  # kept by autograd, not here
        ctx.packed = packed

    def through(ctx: Any, *given: Any) -> tuple[Any, ...]:
        packed = ctx.packed
        found = backward(packed, ctx.saved_tensors, packed.spread(ctx.needs_input_grad), given)
        return tuple(
            g if place is None or isinstance(place, range) else None
            for g, place in zip(packed.unpack(found), packed.places, strict=True)
        )

    return make_autograd_impl(op, Info(through, setup))
