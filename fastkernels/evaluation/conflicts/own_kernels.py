"""What a call runs that is not torch's: operators, Triton kernels, and functions of extension modules and libraries."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.evaluation.conflicts.observe import BUILTIN, LIBRARY
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject

KNOWN_TO_COMPILERS = sys.stdlib_module_names | {"torch", "numpy", "triton", "fastkernels"}


class Outermost(TorchDispatchMode):
    """Adds each foreign operator to ``seen``; ``inside`` says that one is running, whose body no compiler enters."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.inside = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in BUILTIN:
            return func(*args, **(kwargs or {}))
        self.note(func._schema.name)
        self.inside += 1
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside -= 1

    def note(self, name: str) -> None:
        if not self.inside:
            self.seen.add(name)


@contextlib.contextmanager
def own_kernels(*, within: bool = False) -> Iterator[set[str]]:
    """Collects the names of what runs meanwhile; with ``within``, also inside the bodies of operators."""
    mode = Outermost()
    note = mode.seen.add if within else mode.note
    with contextlib.ExitStack() as stack:
        stack.enter_context(_launches(note))
        stack.enter_context(_library_calls(note))
        stack.enter_context(mode)
        stack.enter_context(_extension_calls(note))
        yield mode.seen


def need_operators(subject: Subject) -> None:
    """Raises Skip where no call runs an operator of the candidate's own."""
    for call in subject.calls(rows=[8]):
        with torch.no_grad(), Outermost() as mode:
            subject.build(call)(*subject.draw(call))
        if mode.seen:
            return
    raise Skip("no operator of the candidate's own")


def kernels_in(graph: fx.GraphModule) -> set[str]:
    """Names of the Triton kernels that a graph launches itself."""
    indices = {
        node.kwargs["kernel_idx"]
        for module in graph.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
        if "kernel_idx" in node.kwargs
    }
    return {_name(kernel_side_table.get_kernel(index)) for index in indices}


def _name(kernel: Any) -> str:
    while not isinstance(kernel, types.FunctionType):
        kernel = kernel.fn  # a JIT function, below what tunes it
    return f"triton kernel {kernel.__name__}"


@contextlib.contextmanager
def _launches(note: Callable[[str], None]) -> Iterator[None]:
    """Triton's, compiled or interpreted; none where Triton is not loaded."""
    kinds = [("triton.runtime.jit", "JITFunction"), ("triton.runtime.interpreter", "InterpretedFunction")]
    loaded = [(getattr(sys.modules.get(module), name, None)) for module, name in kinds]
    saved = [(kind, kind.run) for kind in loaded if kind is not None]

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
            note(_name(self))
            return run(self, *args, **kwargs)

        return launch

    for kind, run in saved:
        kind.run = watched(run)
    try:
        yield
    finally:
        for kind, run in saved:
            kind.run = run


@contextlib.contextmanager
def _library_calls(note: Callable[[str], None]) -> Iterator[None]:
    """Of shared libraries opened by ctypes, torch's own left out."""
    # isinstance would ask proxies whose object is dead; Python's own functions are a PyDLL.
    found = [o for o in gc.get_objects() if issubclass(type(o), ctypes.CDLL) and type(o) is not ctypes.PyDLL]
    libraries = [o for o in found if not str(o._name).startswith(str(LIBRARY))]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        note(f"{self.__name__} of a shared library")
        return super(type(self), self).__call__(*args, **kwargs)

    for library in libraries:
        library._FuncPtr.__call__ = call
    try:
        yield
    finally:
        for library in libraries:
            del library._FuncPtr.__call__


@contextlib.contextmanager
def _extension_calls(note: Callable[[str], None]) -> Iterator[None]:
    """Of functions in C++ or C, as Python's profiler sees them."""
    former = sys.getprofile()

    def profile(_: types.FrameType, event: str, function: Any) -> None:
        if event == "c_call" and isinstance(function, types.BuiltinFunctionType):
            module = function.__module__
            if isinstance(module, str) and module.partition(".")[0] not in KNOWN_TO_COMPILERS:
                note(f"{module}.{function.__name__}")

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(former)
