"""The forward that stands on a patched module: runs the candidate while everything it relies on still holds."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import torch
from torch import is_grad_enabled, nn
from torch.compiler import is_compiling, is_dynamo_compiling, is_exporting

from fastkernels.patches.build import Binding
from fastkernels.patches.liveness import compile_check, firing, hooks_of, numbers_of, pins_of, unchanged
from fastkernels.patches.site import Forward, Proposal

# Prepares a copied module: (dispatcher of the copy) -> the implementation bound to the copy's own parameters.
Rebuild = Callable[[nn.Module], "tuple[Proposal, nn.Module, Binding] | str"]
Admit = Callable[[torch.dtype, torch.device], "str | None"]


def called_by_dynamo(method: Forward) -> Forward:
    """Marks a method that Dynamo calls while it traces, as a constant, instead of tracing through it: the same as
    ``torch.compiler.assume_constant_result``, which would import Dynamo."""
    method.__dict__["_dynamo_marked_constant"] = True
    return method


@called_by_dynamo
def _exports() -> bool:
    """``is_exporting()`` as Python sees it: up to torch 2.11, Dynamo takes that function for True in any trace."""
    return is_exporting()


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
        family: object,
    ) -> None:
        self.module, self.original, self.where, self.family = module, original, where, family
        self.admit, self.rebuild = admit, rebuild
        self.differentiable, self.identity = differentiable, identity
        self.retired: str | None = None
        self.calls = 0
        self.bypassed: Counter[str] = Counter()
        self.admitted: dict[tuple[torch.dtype, torch.device], str | None] = {}
        self.__name__ = "forward"
        self.__signature__ = inspect.signature(original)
        self._bind(proposal, implementation, binding)

    def _bind(self, proposal: Proposal, implementation: nn.Module, binding: Binding) -> None:
        self.proposal, self.implementation, self.binding = proposal, implementation, binding
        self.enter, self.leave, self.run = proposal.enter, proposal.leave, implementation.forward
        standing = binding.lowered.get("")
        self.lowered = self.run if standing is None else standing.forward
        self.absent = () if standing is None else standing.absent
        self.pins = pins_of(self.module, proposal, family=self.family)
        self.traced_pins = numbers_of(self.pins)
        self.holds = compile_check(self.pins, binding.merges, binding.viewed)
        self.hooks = hooks_of(self.module, proposal)
        self.hook_tables = [table for _, table in self.hooks]
        self.dtype: torch.dtype | None = None  # of the last admitted call, with its device's index
        self.device: int | None = None
        self.lost: str | None = None

    @property
    def __code__(self) -> CodeType:  # torch.export reads it from any forward
        code: CodeType = self.original.__code__  # type: ignore[attr-defined]  # Forward is any callable
        return code

    def retire(self) -> None:
        """From now on each call runs the original: who kept this forward must not bind a model's weights again."""
        self.retired = "it was unpatched"
        self.holds = lambda: False
        self.traced_pins = [], [({}, "retired", True)]  # never holds, so that Dynamo's guards fail as well
        self.binding.undo()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # the hot path: every line here is paid at every call
        if is_compiling():  # one test for Dynamo and torch.export, neither of which is there in an eager call
            if _exports():
                return self.original(*args, **kwargs)
            if is_dynamo_compiling():
                return self._traced(args, kwargs)
        if not self.holds():
            return self._moved(args, kwargs)
        if self.hook_tables and any(self.hook_tables):
            path = firing(self.hooks, self.proposal.idle)
            if path is not None:
                return self._bypass(f"a hook on {path} would not fire", args, kwargs)
        call = self.enter(args, kwargs)
        if call.__class__ is str:
            return self._bypass(call, args, kwargs)
        x = call[0]
        if (x.dtype is not self.dtype or x.get_device() != self.device) and (reason := self._admit(x)) is not None:
            return self._bypass(reason, args, kwargs)
        if self.autocasting():
            return self._bypass("autocast is on", args, kwargs)
        if not self.differentiable and is_grad_enabled() and self._needs_grad(call):
            return self._bypass("gradients are wanted: use torch.no_grad(), or a candidate that trains", args, kwargs)
        self.calls += 1
        if self.identity:
            return self.original(*args, **kwargs)
        result = self.run(*call)
        return result if self.leave is None else self.leave(result, call)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same as Dynamo sees it. Nothing is written down, for what one call writes the next would be guarded on.
        Addresses are checked once, while it traces: no guard can ask for them."""
        live = self._live()
        if not unchanged(*self.traced_pins) or not live:
            return self.original(*args, **kwargs)
        call = "a hook would not fire" if any(self.hook_tables) else self.enter(args, kwargs)
        if (
            isinstance(call, str)
            or self._verdict(call[0].dtype, call[0].device) is not None
            or torch.is_autocast_enabled(call[0].device.type)
            or (not self.differentiable and is_grad_enabled() and self._needs_grad(call))
            or self.identity
            or self.lowered is None
            or any(call[i] is not None for i in self.absent if i < len(call))
        ):
            return self.original(*args, **kwargs)
        result = self.lowered(*call)
        return result if self.leave is None else self.leave(result, call)

    @called_by_dynamo
    def _live(self) -> bool:
        """Everything that the binding relies on holds, if need be after binding again."""
        reason = None if self.holds() else self._bound_again()
        if reason is not None:
            self.bypassed[reason] += 1
        return reason is None

    def _needs_grad(self, call: tuple[Any, ...]) -> bool:
        tensors = (*self.binding.parameters, *call)
        own = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
        return own or any(p.requires_grad for m in self.binding.merges for p in m.parameters)

    @called_by_dynamo
    def _verdict(self, dtype: torch.dtype, device: torch.device) -> str | None:
        # Indices say nothing about the dtype that a site runs in; the host or its parameters do.
        told = self.proposal.runs_on
        own = (p.dtype for p in self.binding.parameters if p.is_floating_point())
        if not dtype.is_floating_point:
            dtype = next(own, dtype) if told is None else told[1]
        key = (dtype, device)
        if key not in self.admitted:
            self.admitted[key] = self.admit(*key)
        return self.admitted[key]

    def _admit(self, x: torch.Tensor) -> str | None:
        reason = self._verdict(x.dtype, x.device)
        if reason is None:
            self.dtype, self.device = x.dtype, x.get_device()
            # Without an argument torch asks for CUDA, in a third of the time.
            self.autocasting = (
                torch.is_autocast_enabled if x.is_cuda else functools.partial(torch.is_autocast_enabled, x.device.type)
            )
        return reason

    def _moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reason = self._bound_again()
        return self(*args, **kwargs) if reason is None else self._bypass(reason, args, kwargs)

    def _bound_again(self) -> str | None:
        """Something the binding relies on changed: binds again if the module still reads the same, or says why not."""
        if self.retired is not None:
            return self.retired
        if self.proposal.drops and self.module.training:  # binding again would not change that
            return "training mode: its dropout is the original's"
        if self.lost is None or not self._unchanged_since_lost():
            self._part_broken_merges()
            built = self.rebuild(self.module)
            if not isinstance(built, str):
                built[2].take_over(self.binding)
                self._bind(*built)
                if self.holds():
                    return None
                built = "an inner module has a forward of its own, which would be passed over"
            self.lost = built
            self._lost_pins = [(slots, key, slots.get(key)) for slots, key, _ in self.pins]
        return self.lost

    def _part_broken_merges(self) -> None:
        """Takes the remaining parts out of merges that lost one: a storage of our own would pass for somebody's tie.
        The merge may have been made by a dispatcher further in, or by an earlier patch beneath this one."""
        live = {id(p) for p in (*self.module.parameters(), *self.module.buffers())}
        for _, forward in (("", self), *dispatchers(self.module)):
            each: object = forward
            while isinstance(each, Dispatcher):
                for done in each.binding.merges:
                    if not done.intact() or any(id(p) not in live for p in done.parameters):
                        done.undo()
                each = each.original

    def _unchanged_since_lost(self) -> bool:
        return all(slots.get(key) is value for slots, key, value in self._lost_pins)

    def _bypass(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
        self.module, self.source, self.family = module, source, source.family
        self.__name__ = "forward"
        self.__signature__ = source.__signature__

    @property
    def __code__(self) -> CodeType:
        return type(self.module).forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = type(self.module).forward.__get__(self.module)
        if is_compiling() and _exports():
            return original(*args, **kwargs)
        built = self.source.rebuild(self.module)
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
            family=self.family,
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
        for forward in list(module.__dict__.values()):
            if isinstance(forward, Dispatcher):
                yield path, forward
