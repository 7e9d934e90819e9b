"""In a child: what a call launches, which of it is the implementation's own, and what is left without that."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.evaluation.conflicts.observe import LIBRARY
from fastkernels.evaluation.conflicts.own_kernels import own_kernels
from fastkernels.runtime.launch import Launcher

TRITON_KINDS = (("triton.runtime.jit", "JITFunction"), ("triton.runtime.interpreter", "InterpretedFunction"))
NOT_A_CANDIDATES = ("torch.", "triton.", "fastkernels.")
MOST_NAMES = 40
WARM_CALLS, LEAST_WARM_CALLS, WARM_SECONDS = 64, 3, 1.0
PROFILED_CALLS = 5


class _Operators(TorchDispatchMode):
    """The operators that ran, with the shapes that they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        shapes = [tuple(t.shape) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.seen.append(f"{func}{shapes}")
        return func(*args, **(kwargs or {}))


def operators_of(call: Callable[[], Any]) -> list[str]:
    """Torch's operators that a call runs, in order."""
    with _Operators() as mode:
        call()
    return mode.seen


def observed(
    forward: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    device: torch.device,
    libraries: set[str],
) -> dict[str, Any]:
    """What a call runs once it is warm: names of kernels, of the own ones, of those ``brought`` since ``libraries``
    were loaded, and whether its operators are those of ``reference``.

    ``kernel_seconds`` is the time for which the GPU was busy in one call, None where no kernel was seen.
    """

    def call() -> Any:
        return forward(*arguments)

    _warm(call, device)
    own = own_launches(call)
    kernels, seconds = gpu_kernels(call) if device.type == "cuda" else ([], None)
    names = {_name(k) for k in _triton_functions()}
    own |= {f"triton kernel {k}" for k in kernels if k in names}
    mine, theirs = operators_of(call), operators_of(lambda: reference(*arguments))
    return {
        "own": sorted(own)[:MOST_NAMES],
        "brings": brought(device, libraries),
        "kernels": (kernels or list(dict.fromkeys(o.partition("[")[0] for o in mine)))[:MOST_NAMES],
        "kernel_seconds": seconds,
        "delegates": not own and mine == theirs,
    }


def _warm(call: Callable[[], Any], device: torch.device) -> None:
    """Calls it until it is tuned and has its workspaces: as often as a candidate has been called when it is timed."""
    end = time.monotonic() + WARM_SECONDS
    for i in range(WARM_CALLS):
        call()
        if i >= LEAST_WARM_CALLS and time.monotonic() > end:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def own_launches(call: Callable[[], Any]) -> set[str]:
    """Names of the implementation's own kernels that a call launches, as far as Python sees them."""
    own: set[str] = set()
    original = Launcher.__call__

    def launch(self: Launcher, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        own.add(f"triton kernel {_name(self.kernel)}")

    Launcher.__call__ = launch  # type: ignore[method-assign]
    try:
        with _completed() as completed, own_kernels(within=True) as seen:
            call()
    finally:
        Launcher.__call__ = original  # type: ignore[method-assign]
    return own | {n for n in seen if not n.startswith("triton kernel") or n in completed}


@contextlib.contextmanager
def _completed() -> Iterator[set[str]]:
    """Triton launches that did not raise."""
    done: set[str] = set()
    kinds = [kind for m, n in TRITON_KINDS if (kind := getattr(sys.modules.get(m), n, None)) is not None]
    saved = [(kind, kind.run) for kind in kinds]

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = run(self, *args, **kwargs)
            done.add(f"triton kernel {_name(self)}")
            return result

        return launch

    for kind, run in saved:
        kind.run = watched(run)
    try:
        yield done
    finally:
        for kind, run in saved:
            kind.run = run


def gpu_kernels(call: Callable[[], Any]) -> tuple[list[str], float | None]:
    """Names of the kernels that a call runs on the GPU; and for how long any was running, in seconds of one call, None
    where none was seen."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(PROFILED_CALLS):
            call()
            torch.cuda.synchronize()
    found = [
        e for e in trace.events()
        if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
    ]  # fmt: skip
    if not found:
        return [], None
    busy = covered((e.time_range.start, e.time_range.end) for e in found)
    return list(dict.fromkeys(e.name for e in found)), busy / 1e6 / PROFILED_CALLS


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How much of a line the intervals cover together.

    >>> covered([(5, 6), (0, 2), (1, 3), (1, 2)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def brought(device: torch.device, libraries: set[str]) -> list[str]:
    """Kernels that the implementation defines and that could run here: Triton functions, libraries loaded since."""
    interpreter = getattr(sys.modules.get("triton.runtime.interpreter"), "InterpretedFunction", ())
    usable = [f for f in _triton_functions() if device.type == "cuda" or isinstance(f, interpreter)]
    found = {f"triton kernel {_name(f)}" for f in usable if _is_own(f)}
    return sorted(found | {f"library {name}" for name in loaded_libraries() - libraries})


def loaded_libraries() -> set[str]:
    """Shared libraries opened by ctypes or as torch extensions; torch's and Triton's own left out."""
    opened = [o for o in gc.get_objects() if issubclass(type(o), ctypes.CDLL) and type(o) is not ctypes.PyDLL]
    names = {str(o._name) for o in opened} | set(torch.ops.loaded_libraries)
    return {n for n in names if n.endswith(".so") and "/" in n and not n.startswith(str(LIBRARY)) and "triton" not in n}


@contextlib.contextmanager
def without_own_kernels() -> Iterator[list[str]]:
    """Triton launches and functions of libraries opened by ctypes do nothing; collects what would have run."""
    stopped: list[str] = []
    undo: list[tuple[Any, str, Any]] = []

    def replaced(kind: Any, name: str, label: Callable[[Any], str]) -> None:
        def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
            stopped.append(label(self))

        undo.append((kind, name, kind.__dict__.get(name)))
        setattr(kind, name, nothing)

    for module, kind_name in TRITON_KINDS:
        kind = getattr(sys.modules.get(module), kind_name, None)
        if kind is not None:
            replaced(kind, "run", _name)
    replaced(Launcher, "__call__", lambda launcher: _name(launcher.kernel))
    compiled = getattr(sys.modules.get("triton.compiler.compiler"), "CompiledKernel", None)
    if compiled is not None and "__getitem__" in compiled.__dict__:

        def no_runner(self: Any, grid: Any) -> Callable[..., None]:
            return lambda *args, **kwargs: stopped.append(str(getattr(self, "name", "compiled kernel")))

        undo.append((compiled, "__getitem__", compiled.__dict__["__getitem__"]))
        compiled.__getitem__ = no_runner
    for library in [o for o in gc.get_objects() if issubclass(type(o), ctypes.CDLL) and type(o) is not ctypes.PyDLL]:
        name = str(library._name)
        if name.endswith(".so") and "/" in name and not name.startswith(str(LIBRARY)) and "triton" not in name:
            replaced(library._FuncPtr, "__call__", lambda f: f"{f.__name__} of a shared library")
    try:
        yield stopped
    finally:
        for kind, name, original in reversed(undo):
            if original is None:
                delattr(kind, name)
            else:
                setattr(kind, name, original)


def _triton_functions() -> list[Any]:
    kinds = tuple(
        kind for module, name in TRITON_KINDS if (kind := getattr(sys.modules.get(module), name, None)) is not None
    )
    return [o for o in gc.get_objects() if kinds and issubclass(type(o), kinds)]


def _is_own(function: Any) -> bool:
    return not str(getattr(_plain(function), "__module__", "")).startswith(NOT_A_CANDIDATES)


def _plain(kernel: Any) -> Any:
    while not isinstance(kernel, types.FunctionType) and hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


def _name(kernel: Any) -> str:
    return str(getattr(_plain(kernel), "__name__", kernel))
