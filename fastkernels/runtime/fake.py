"""What an op computes when it is not run: the task's reference, on fake tensors, proxies or leaves of autograd.

The reference's own parameters give way to the tensors that came in as arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fastkernels.errors import LoweringError
from fastkernels.tasks import Task

# A reference that reads values, or passes a symbolic size where torch wants a number, has no result on fake tensors;
# the task's witness may have. Torch raises one of these for both, data-dependent guards among them.
LOOKS_AT_VALUES = (RuntimeError, TypeError)
_exchange = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where a module keeps one parameter or buffer: ``getattr(owner, table)[leaf]``."""

    name: str
    owner: nn.Module
    table: str
    leaf: str

    @property
    def tensor(self) -> torch.Tensor:
        return getattr(self.owner, self.table)[self.leaf]


def slots_of(module: nn.Module) -> list[Slot]:
    """The slots of all parameters and buffers, by qualified name; those that hold None are left out."""
    return [
        Slot(name=f"{path}.{leaf}" if path else leaf, owner=owner, table=table, leaf=leaf)
        for path, owner in module.named_modules(remove_duplicate=False)
        for table in ("_parameters", "_buffers")
        for leaf, tensor in getattr(owner, table).items()
        if tensor is not None
    ]


@contextmanager
def holding(slots: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Puts ``tensors`` into ``slots`` for the duration; one thread at a time."""
    with _exchange:
        former = [(getattr(s.owner, s.table), s.leaf, s.tensor) for s in slots]
        try:
            for (table, leaf, _), tensor in zip(former, tensors, strict=True):
                table[leaf] = tensor
            yield
        finally:
            for table, leaf, tensor in former:
                table[leaf] = tensor


class Semantics:
    """A task's reference as a function of arguments and state; where it looks at values, the task's witness."""

    def __init__(
        self, reference: nn.Module, *, task: Task, facts: Mapping[str, Any], method: str, names: Sequence[str]
    ) -> None:
        self.task, self.facts, self.method, self.names = task, facts, method, names
        self._bind(reference)

    def _bind(self, module: nn.Module) -> None:
        index = {name: i for i, name in enumerate(self.names)}
        kept = [s for s in slots_of(module) if s.name in index]
        self.module, self.slots, self.order = module, kept, [index[s.name] for s in kept]

    def __call__(self, call: Sequence[Any], state: Sequence[torch.Tensor]) -> Any:
        """The result of the interface's method on ``call``, with ``state`` in the order of ``names``."""
        try:
            return self._run(call, state)
        except LOOKS_AT_VALUES:
            reference = self.module
            if isinstance(reference, self.task.witness):
                raise
            with _disable_current_modes():  # the tensors of a module built under fake or proxy mode would stay theirs
                self._bind(reference_for(self.task, self.facts, cls=self.task.witness))
            try:
                return self._run(call, state)
            except LOOKS_AT_VALUES as error:
                self._bind(reference)
                raise LoweringError(
                    f"task {self.task.name}: neither its reference nor its witness runs without values, so an operator "
                    f"cannot say what it returns ({type(error).__name__}: {error}). Use lowering='inline'."
                ) from error

    def _run(self, call: Sequence[Any], state: Sequence[torch.Tensor]) -> Any:
        with holding(self.slots, [state[i] for i in self.order]):
            return getattr(self.module, self.method)(*call)

    def fake(self, call: Sequence[Any], state: Sequence[torch.Tensor]) -> Any:
        """The result on stand-ins of real tensors: shapes and dtypes, no values."""
        mode = FakeTensorMode()

        def stand_in(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return mode.from_tensor(value.detach())
            return tuple(map(stand_in, value)) if isinstance(value, (tuple, list)) else value

        stand_ins = [stand_in(a) for a in call], [stand_in(t) for t in state]
        with mode, torch.no_grad(), undispatched():
            return self(*stand_ins)


@contextmanager
def undispatched() -> Iterator[None]:
    """Outside of autocast, which an op's body never sees when it is compiled."""
    with torch._C._DisableAutocast():
        yield


def reference_for(
    task: Task,
    facts: Mapping[str, Any],
    *,
    cls: type[nn.Module] | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The task's interface (or ``cls``) built from ``facts``: parameters without values, buffers as computed."""
    build: Callable[..., nn.Module] = cls or task.interface
    with torch.device("meta"):
        module = build(**facts)
    if any(b.is_meta for b in module.buffers()):
        with torch.device(device):
            real = build(**facts)
        for mine, theirs in zip(slots_of(module), slots_of(real), strict=True):
            if mine.table == "_buffers":
                mine.owner._buffers[mine.leaf] = theirs.tensor
    return module.eval()
