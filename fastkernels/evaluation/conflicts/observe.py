"""Watches a candidate run: every operator below autograd, also those inside operator bodies, and every host read."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._C import DispatchKey, DispatchKeySet
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.subject import tensors

LIBRARY = Path(torch.__file__).parent
OURS = Path(__file__).parents[2]
BUILTIN = frozenset({"aten", "prims", "prim", "profiler", "c10d", "_c10d_functional", "inductor", "mkldnn", "mkl"})
# Tensor methods that hand a value or a copy to the host. On a CPU tensor most leave no trace in the dispatcher.
HOST_READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One operator call: what it was given and returned, and the candidate's line that led to it."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    handed: tuple[torch.Tensor, ...]  # the tensor arguments themselves, not their clones
    written: tuple[int, ...]  # indices, among the tensor arguments, whose bits changed
    where: Evidence
    depth: int  # 0: called by the module; more: inside an operator's body

    @property
    def name(self) -> str:
        return self.op._schema.name


@dataclass
class Watch(TorchDispatchMode):
    """Records operator calls, also inside the bodies of operators that are not torch's own. The arguments of these are
    cloned first, to see what they write; not with ``writes`` off, which a capture needs."""

    seen: list[Seen] = field(default_factory=list)
    born: list[StorageWeakRef] = field(default_factory=list)
    depth: int = 0
    writes: bool = True

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.depth and is_composite(func):  # inside a body nothing else takes these apart
            with self:
                return func.decompose(*args, **kwargs)
        foreign = func.namespace not in BUILTIN
        cloned = foreign and self.writes
        given = tensors((args, kwargs))
        known = {t.untyped_storage()._cdata for t in given}
        before = [t.clone() for t in given] if cloned else []
        result = self._through(func, args, kwargs) if foreign else func(*args, **kwargs)
        written = tuple(i for i, (b, t) in enumerate(zip(before, given, strict=False)) if not _equal(b, t))
        where = user_frame()
        for t in tensors(result):
            if t.untyped_storage()._cdata not in known:
                self.born.append(StorageWeakRef(t.untyped_storage()))
        inputs = _swap(args, kwargs, given, before) if cloned else (args, kwargs)
        self.seen.append(
            Seen(
                op=func,
                args=inputs[0],
                kwargs=inputs[1],
                result=result,
                handed=tuple(given) if foreign else (),
                written=written,
                where=where,
                depth=self.depth,
            )
        )
        return result

    def _through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a foreign operator's kernel with the watch still on, so that its body is seen too."""
        device = next((t.device.type for t in tensors((args, kwargs))), "cpu")
        key = DispatchKey.CUDA if device == "cuda" else DispatchKey.CPU
        if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), key.name):
            return func(*args, **kwargs)
        self.depth += 1
        try:
            with self:
                return func.redispatch(DispatchKeySet(key), *args, **kwargs)
        finally:
            self.depth -= 1

    def foreign(self) -> list[Seen]:
        """Calls of operators that are not torch's own; not those inside another's body, which no compiler sees."""
        return [s for s in self.seen if s.depth == 0 and s.op.namespace not in BUILTIN]


def is_composite(op: torch._ops.OpOverload) -> bool:
    """Whether one of torch's own operators only stands for calls of others."""
    return op.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        op.name(), "CompositeImplicitAutograd"
    )


def _equal(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Bit by bit."""
    return before.shape == after.shape and torch.equal(_bits(before), _bits(after))


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.detach().reshape(-1).contiguous().view(torch.uint8)


def _swap(args: Any, kwargs: Any, given: list[torch.Tensor], before: list[torch.Tensor]) -> tuple[Any, Any]:
    """The arguments with each tensor replaced by its value from before the call."""
    clones = {id(t): b for t, b in zip(given, before, strict=True)}
    return pytree.tree_map_only(torch.Tensor, lambda t: clones[id(t)], (args, kwargs))


@dataclass(frozen=True, kw_only=True)
class Read:
    """A value that went to the host, by which method, from where."""

    how: str
    where: Evidence


@contextlib.contextmanager
def host_reads() -> Iterator[list[Read]]:
    """Collects host reads by replacing the methods of torch.Tensor for a while (the process is the stage's own)."""
    reads: list[Read] = []
    saved = {name: torch.Tensor.__dict__.get(name) for name in (*HOST_READS, "to")}

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            frame = user_frame()
            if frame.file is not None and (name != "to" or _to_host(args, kwargs)):
                reads.append(Read(how=name, where=frame))
            return original(self, *args, **kwargs)

        return method

    for name in saved:
        setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    try:
        yield reads
    finally:
        for name, original in saved.items():
            if original is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, original)


def _to_host(args: Any, kwargs: Any) -> bool:
    return any(
        isinstance(a, str) and a.startswith("cpu")
        for a in (*args[:1], kwargs.get("device"))  # a torch.device may just be the inputs' own
    )


def user_frame() -> Evidence:
    """The innermost frame that is neither torch's, ours, nor the standard library's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if is_user_file(name):
            return Evidence(file=name, line=frame.f_lineno)
        frame = frame.f_back
    return Evidence()


def is_user_file(name: str) -> bool:
    """Whether a code file belongs to the candidate."""
    if name.startswith("<"):
        return False
    path = Path(name)
    standard = Path(contextlib.__file__).parent
    return not (
        path.is_relative_to(LIBRARY) or path.is_relative_to(OURS) or "site-packages" in path.parts
        or path.is_relative_to(standard)
    )  # fmt: skip


def frame_of(error: BaseException) -> Evidence:
    """Text of an error and the last frame of the candidate in its traceback (or in Dynamo's stack of user frames)."""
    stack = list(getattr(error, "real_stack", None) or []) + traceback.extract_tb(error.__traceback__)
    own = [f for f in getattr(error, "real_stack", None) or [] if is_user_file(f.filename)]
    own = own or [f for f in stack if is_user_file(f.filename)]
    text = f"{type(error).__name__}: {error}"[:1500]
    return Evidence(text=text, file=own[-1].filename, line=own[-1].lineno) if own else Evidence(text=text)
