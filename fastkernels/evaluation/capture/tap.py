"""The forward that stands on a module while it is recorded, and the places where one is put and taken away."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from fastkernels.errors import EvaluationError
from fastkernels.patches.site import Forward, Site

See = Callable[[tuple[Any, ...], dict[str, Any]], None]
ABSENT = object()


class Tap:
    """Has the call written down, and makes it.

    Args:
        see: given the arguments before an eager call.
        trace: given the arguments where Dynamo traces the call.
        after: given the result of an eager call, or None where it raised.
    """

    def __init__(
        self,
        original: Forward,
        *,
        module: nn.Module,
        slot: str,
        see: See,
        trace: See | None = None,
        after: Callable[[Any], None] | None = None,
    ) -> None:
        self.module, self.slot, self.former = module, slot, module.__dict__.get(slot, ABSENT)
        self.original, self.see, self.trace, self.after = original, see, trace, after
        self.live, self.refused = True, False
        self.__name__ = "forward"
        self.__signature__ = inspect.signature(original)

    @property
    def __code__(self) -> CodeType:
        code: CodeType = self.original.__code__  # type: ignore[attr-defined]  # Forward is any callable
        return code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.live:
            return self.original(*args, **kwargs)
        if is_compiling():
            if self.trace is not None:
                self.trace(args, kwargs)
            return self.original(*args, **kwargs)
        self.see(args, kwargs)
        result = None
        try:
            result = self.original(*args, **kwargs)
            return result
        finally:
            if self.after is not None:
                self.after(result)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module is not recorded: it gets its class's own forward."""
        clone = memo.get(id(self.module))
        return self if clone is None else getattr(type(clone), self.slot.removeprefix("_old_")).__get__(clone)


class Taps:
    """The taps of one recording, in the order in which they were put."""

    def __init__(self) -> None:
        self._standing: list[Tap] = []

    def put(self, module: nn.Module, method: str, **wishes: Any) -> None:
        """Puts a tap on ``module``'s ``method``; under accelerate's own forward, as candidates stand."""
        slots = module.__dict__
        under = method == "forward" and "_hf_hook" in slots and "_old_forward" in slots
        slot = "_old_forward" if under else method
        tap = Tap(getattr(module, slot), module=module, slot=slot, **wishes)
        self._standing.append(tap)
        slots[slot] = tap

    def take_away(self) -> None:
        """Ends every tap, and restores every module's former entry; a second call takes away what is free by then.

        Raises:
            EvaluationError: something was put on top of a tap, which stays under it and only makes the call. What can
                be restored is restored all the same.
        """
        for tap in self._standing:
            tap.live, tap.see, tap.trace, tap.after = False, _nothing, None, None
        stuck: list[Tap] = []
        first = True
        while self._standing:
            tap = self._standing.pop()
            first, slots = first and not tap.refused, tap.module.__dict__
            if slots.get(tap.slot) is not tap:
                tap.refused = True
                stuck.append(tap)
                continue
            former = tap.former
            while isinstance(former, Tap) and former.refused:  # of a capture that ended under this one
                former = former.former
            if former is ABSENT:
                del slots[tap.slot]
            else:
                slots[tap.slot] = former
        self._standing = stuck[::-1]
        if stuck and first:
            top = stuck[0]
            raise EvaluationError(
                f"{type(top.module).__name__}.{top.slot}: {top.module.__dict__.get(top.slot)!r:.80} was put on top of "
                f"the capture, which has ended all the same. {len(stuck)} of its taps stay below and only make the "
                "call. Take away what is on top first, and end the capture after it."
            )


def _nothing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a tap that has ended writes down."""


def method_of(site: Site) -> str:
    """The method that the host calls; a gated proposal does not say it, and vLLM's experts have one of their own."""
    modular = site.proposal.gated and hasattr(type(site.module), "forward_modular")
    return "forward_modular" if modular else site.proposal.method
