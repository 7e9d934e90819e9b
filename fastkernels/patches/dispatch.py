"""The forward that stands on a patched module: runs the candidate while everything it relies on still holds."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.patches.build import Binding
from fastkernels.patches.liveness import compile_check, hooks_of, pins_of
from fastkernels.patches.site import Forward, Proposal

# Prepares a copied module: (dispatcher of the copy) -> the implementation bound to the copy's own parameters.
Rebuild = Callable[[nn.Module], "tuple[Proposal, nn.Module, Binding] | str"]
Admit = Callable[[torch.dtype, torch.device], "str | None"]


class Dispatcher:
    """Callable put into a module's ``__dict__["forward"]``; calls the candidate, or the original with the reason.

    A deep copy of the module gets a dispatcher that binds the copy's own parameters on its first call; a pickled
    one loads as the class's own forward, without this library.
    """

    def __init__(
        self,
        *,
        module: nn.Module,
        proposal: Proposal,
        implementation: nn.Module,
        binding: Binding,
        original: Forward,
        admit: Admit,
        rebuild: Rebuild,
        differentiable: bool,
        identity: bool = False,
        where: str,
    ) -> None:
        self.module, self.original, self.where = module, original, where
        self.admit, self.rebuild = admit, rebuild
        self.differentiable, self.identity = differentiable, identity
        self.calls = 0
        self.bypassed: Counter[str] = Counter()
        self.admitted: dict[tuple[torch.dtype, torch.device], str | None] = {}
        self.__name__ = "forward"
        self.__signature__ = inspect.signature(original)
        self._bind(proposal, implementation, binding)

    def _bind(self, proposal: Proposal, implementation: nn.Module, binding: Binding) -> None:
        self.proposal, self.implementation, self.binding = proposal, implementation, binding
        self.enter, self.leave, self.run = proposal.enter, proposal.leave, implementation.forward
        self.pins = pins_of(self.module, proposal)
        self.holds = compile_check(self.pins, binding.merges, binding.viewed)
        self.hooks = hooks_of(self.module, proposal)
        self.hook_tables = [table for _, table in self.hooks]
        self.dtype: torch.dtype | None = None  # of the last admitted call, with its device's index
        self.device: int | None = None
        self.lost: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # the hot path: every line here is paid at every call
        if not self.holds():
            return self._moved(args, kwargs)
        if any(self.hook_tables):
            path = next(path for path, table in self.hooks if table)
            return self._bypass(f"a hook on {path} would not fire", args, kwargs)
        call = self.enter(args, kwargs)
        if call.__class__ is str:
            return self._bypass(call, args, kwargs)
        x = call[0]
        if (x.dtype is not self.dtype or x.get_device() != self.device) and (reason := self._admit(x)) is not None:
            return self._bypass(reason, args, kwargs)
        if self.autocasting():
            return self._bypass("autocast is on", args, kwargs)
        if torch.is_grad_enabled() and not self.differentiable and self._needs_grad(call):
            return self._bypass("gradients are wanted: use torch.no_grad(), or a candidate that trains", args, kwargs)
        if not torch.compiler.is_dynamo_compiling():
            self.calls += 1
        if self.identity:
            return self.original(*args, **kwargs)
        result = self.run(*call)
        return result if self.leave is None else self.leave(result)

    def _needs_grad(self, call: tuple[Any, ...]) -> bool:
        tensors = (*self.binding.parameters, *call)
        own = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
        return own or any(p.requires_grad for m in self.binding.merges for p in m.parameters)

    def _admit(self, x: torch.Tensor) -> str | None:
        key = (x.dtype, x.device)
        if key not in self.admitted:
            # Indices say nothing about the dtype that a site runs in; its parameters do.
            own = (p.dtype for p in self.binding.parameters if p.is_floating_point())
            self.admitted[key] = self.admit(x.dtype if x.is_floating_point() else next(own, x.dtype), x.device)
        reason = self.admitted[key]
        if reason is None:
            self.dtype, self.device = x.dtype, x.get_device()
            # Without an argument torch asks for CUDA, in a third of the time.
            self.autocasting = (
                torch.is_autocast_enabled if x.is_cuda else functools.partial(torch.is_autocast_enabled, x.device.type)
            )
        return reason

    def _moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Something the binding relies on changed: binds again if the module still reads the same."""
        if self.proposal.drops and self.module.training:  # binding again would not change that
            return self._bypass("training mode: its dropout is the original's", args, kwargs)
        if self.lost is None or not self._unchanged_since_lost():
            built = self.rebuild(self.module)
            if not isinstance(built, str):
                self.binding.undo()
                self._bind(*built)
                return self(*args, **kwargs)
            self.lost = built
            self._lost_pins = [(slots, key, slots.get(key)) for slots, key, _ in self.pins]
        return self._bypass(self.lost, args, kwargs)

    def _unchanged_since_lost(self) -> bool:
        return all(slots.get(key) is value for slots, key, value in self._lost_pins)

    def _bypass(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            self.bypassed[reason] += 1
        return self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dispatcher | Forward:
        module = memo.get(id(self.module))
        if module is None:  # somebody copies the dispatcher alone
            return self
        return Dormant(module, self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (functools.partial, (type(self.module).forward, self.module))


class Dormant:
    """The forward of a deep copy before its first call; wakes as a dispatcher over the copy's own parameters."""

    def __init__(self, module: nn.Module, source: Dispatcher) -> None:
        self.module, self.source = module, source
        self.__name__ = "forward"
        self.__signature__ = source.__signature__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        built = self.source.rebuild(self.module)
        original = type(self.module).forward.__get__(self.module)
        if isinstance(built, str):
            self.module.__dict__.pop("forward", None)
            return original(*args, **kwargs)
        proposal, implementation, binding = built
        awake = Dispatcher(
            module=self.module,
            proposal=proposal,
            implementation=implementation,
            binding=binding,
            original=original,
            admit=self.source.admit,
            rebuild=self.source.rebuild,
            differentiable=self.source.differentiable,
            identity=self.source.identity,
            where=f"copy of {self.source.where}",
        )
        self.module.__dict__["forward"] = awake
        return awake(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dormant:
        module = memo.get(id(self.module))
        return self if module is None else Dormant(module, self.source)

    def __reduce__(self) -> tuple[Any, ...]:
        return (functools.partial, (type(self.module).forward, self.module))


def dispatchers(model: nn.Module) -> Iterator[tuple[str, Dispatcher]]:
    """The dispatchers that stand on a model now, by module path."""
    for path, module in model.named_modules():
        for slot in ("forward", "_old_forward"):
            forward = module.__dict__.get(slot)
            if isinstance(forward, Dispatcher):
                yield path, forward


def check_output(result: Any, like: Any, *, where: str, label: str, task: str) -> None:
    """Raises CandidateError unless ``result`` has the structure, shapes and dtypes of ``like``."""
    got, want = _flat(result), _flat(like)
    said, wanted = ", ".join(map(_describe, got)), ", ".join(map(_describe, want))
    if len(got) != len(want) or any(_describe(g) != _describe(w) for g, w in zip(got, want, strict=False)):
        dtypes = {str(t.dtype).removeprefix("torch.") for t in got if isinstance(t, torch.Tensor)}
        raise CandidateError(
            f"{where}: candidate {label} returns {said or type(result).__name__}, the task {task} says {wanted}. "
            f"Return what the interface does, or declare what it supports (dtypes={sorted(dtypes)})."
        )


def _flat(result: Any) -> list[Any]:
    if isinstance(result, (tuple, list)):
        return [t for r in result for t in _flat(r)]
    return [] if result is None else [result]


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
