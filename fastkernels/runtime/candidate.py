"""A candidate: an nn.Module class that implements a task, with what it declares about itself."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.tasks import Task, get_task

Module = TypeVar("Module", bound=type[nn.Module])
# How a candidate enters a compiled graph: traced into it by Dynamo, as one operator, as one that shows its kernels to
# the compiler behind Dynamo, or whichever of the first two works.
Lowering = Literal["inline", "opaque", "transparent", "auto"]
DECLARATION = "__fastkernels__"


@dataclass(frozen=True, kw_only=True)
class Supports:
    """Where a candidate may run; anything left out is not restricted.

    Args:
        devices: device types, such as ``("cuda",)``.
        dtypes: dtypes of the site's floating-point inputs.
        capability: least CUDA compute capability, such as ``(8, 0)``.
        facts: called with the constructor facts of a site; returns None, or the reason why it does not fit.
        training: gradients flow through ``forward`` correctly.
    """

    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    capability: tuple[int, int] | None = None
    facts: Callable[[Mapping[str, Any]], str | None] | None = None
    training: bool = False

    def refusal(self, *, device: torch.device, dtype: torch.dtype, facts: Mapping[str, Any]) -> str | None:
        """Why a site with this device, dtype and constructor facts is not supported, or None.

        >>> Supports(dtypes=(torch.bfloat16,)).refusal(device=torch.device("cpu"), dtype=torch.float32, facts={})
        'it supports bfloat16, the site runs in float32'
        """
        if self.devices is not None and device.type not in self.devices:
            return f"it supports {' and '.join(self.devices)}, the site is on {device.type}"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"it supports {' and '.join(_name(d) for d in self.dtypes)}, the site runs in {_name(dtype)}"
        if self.capability is not None and device.type == "cuda":
            have = torch.cuda.get_device_capability(device)
            if have < self.capability:
                return f"it needs compute capability {self.capability}, the device has {have}"
        return self.facts(facts) if self.facts is not None else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A task's implementation: ``cls`` to build, where it came from, what it supports, and how it is lowered, where
    its author has declared that."""

    task: Task
    cls: type[nn.Module]
    origin: str
    digest: str
    supports: Supports = Supports()
    lowering: Lowering | None = None

    @property
    def label(self) -> str:
        """Short name for reports: the file for a folder's candidate, the class otherwise."""
        return self.origin


def candidate(
    task: str,
    *,
    devices: tuple[str, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    capability: tuple[int, int] | None = None,
    facts: Callable[[Mapping[str, Any]], str | None] | None = None,
    training: bool = False,
    lowering: Lowering | None = None,
) -> Callable[[Module], Module]:
    """Marks a class as a candidate of ``task``; the other arguments are those of ``Supports``.

    ``lowering`` spares ``patch(lowering="auto")`` the trial: ``inline`` if compilers can trace the candidate,
    ``opaque`` if they cannot or should not.

    >>> from fastkernels.tasks.L1.silu import SiLU
    >>> @candidate("silu", devices=("cpu",))
    ... class MySiLU(SiLU):
    ...     pass
    >>> as_candidate(MySiLU).supports.devices
    ('cpu',)
    """
    supports = Supports(devices=devices, dtypes=dtypes, capability=capability, facts=facts, training=training)

    def mark(cls: Module) -> Module:
        setattr(cls, DECLARATION, (task, supports, lowering))
        return cls

    return mark


def as_candidate(cls: type, *, task: Task | None = None, origin: str | None = None) -> Candidate:
    """The candidate that ``cls`` is, for ``task`` or for the task that its decorator names.

    Raises:
        CandidateError: not an nn.Module class, no task known, or a decorator that names another task.
    """
    where = origin or f"{cls.__module__}.{cls.__qualname__}"
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CandidateError(f"{where}: a candidate is an nn.Module class, this is {cls!r}.")
    named, supports, lowering = cls.__dict__.get(DECLARATION, (None, Supports(), None))
    if task is None:
        if named is None:
            raise CandidateError(f"{where}: which task? Mark the class with @fastkernels.candidate(TASK).")
        task = get_task(named)
    elif named is not None and named != task.name:
        raise CandidateError(f"{where}: marked as a candidate of {named}, given for {task.name}.")
    check_signature(cls, task, where)
    return Candidate(task=task, cls=cls, origin=where, digest=digest_of(cls), supports=supports, lowering=lowering)


def check_signature(cls: type[nn.Module], task: Task, where: str) -> None:
    """Raises CandidateError where ``forward`` cannot take the arguments that the interface's ``forward`` requires."""
    if cls.forward is nn.Module.forward:
        raise CandidateError(f"{where}: {cls.__name__} has no forward; {task.name} is {_forward_of(task.interface)}.")
    wanted = [p for p in inspect.signature(task.interface.forward).parameters.values() if p.default is p.empty]
    placeholders = [None] * len(wanted)
    try:
        inspect.signature(cls.forward).bind(*placeholders)
    except TypeError as error:
        raise CandidateError(
            f"{where}: forward{inspect.signature(cls.forward)} does not take the arguments of {task.name}, "
            f"{_forward_of(task.interface)}: {error}."
        ) from error


def _forward_of(interface: type[nn.Module]) -> str:
    names = [str(p).split(":")[0] for p in list(inspect.signature(interface.forward).parameters.values())[1:]]
    return f"{interface.__name__}.forward({', '.join(names)})"


def digest_of(cls: type) -> str:
    """A content hash of the file that defines ``cls``, or of its qualified name where there is no file."""
    try:
        content = Path(inspect.getfile(cls)).read_bytes()
    except (TypeError, OSError):
        content = f"{cls.__module__}.{cls.__qualname__}".encode()
    return hashlib.sha256(content + cls.__qualname__.encode()).hexdigest()[:12]
