"""The quickest way to launch a Triton kernel from eager code: Python time, not the GPU, bounds small decode steps.

Triton's own launch works out the specialisation of every argument on each call; this keys it on what can change.
A first launch waits for a compilation of 0.1 to 0.5 s, so these can be started ahead, side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.compiler import is_compiling, is_dynamo_compiling

INT32_END = 1 << 31
ALIGNMENT_BYTES = 16  # what Triton assumes of a pointer, or does not, when it compiles
WORKERS = 8  # each mostly waits for a ptxas or a C compiler of its own

_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("_pool", default=None)
_in_graph: ContextVar[bool] = ContextVar("_in_graph", default=False)


class Launcher:
    """Calls ``kernel[grid](*tensors, *numbers, *constants)``, through the compiled kernel.

    Args:
        kernel: a ``triton.jit`` function whose parameters are tensors or tensor descriptors (None only after the
            first), then run-time numbers (all of them named in ``do_not_specialize``), then ``tl.constexpr``.

    Traced and interpreted calls take Triton's own path. The tensors' device need not be the current one.
    """

    exists = False  # whether this process has any

    def __init__(self, kernel: Any) -> None:
        Launcher.exists = True
        self.kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._pending: dict[tuple[Any, ...], Future[Any]] = {}

    def __call__(
        self,
        grid: tuple[int, int],
        tensors: tuple[Any, ...],
        numbers: tuple[int | float, ...],
        constants: tuple[Any, ...],
        warps: int,
        stages: int = 3,
    ) -> None:
        first = tensors[0] if isinstance(tensors[0], torch.Tensor) else tensors[0].base
        if is_compiling() or _in_graph.get() or not first.is_cuda or (numbers and max(numbers) >= INT32_END):
            kernel = self.kernel
            if not is_dynamo_compiling() and _in_graph.get():
                kernel = torch.library.wrap_triton(kernel)
            kernel[grid](*tensors, *numbers, *constants, num_warps=warps, num_stages=stages)
            return
        device = first.get_device()
        if device != torch._C._cuda_getDevice():
            with torch.cuda.device(device):
                self(grid, tensors, numbers, constants, warps, stages)
            return
        bits = 0
        pointers: list[Any] = []
        dtypes: list[Any] = []
        for tensor in tensors:
            if tensor is None:
                pointers.append(None)
                dtypes.append(None)
            elif not isinstance(tensor, torch.Tensor):
                pointers.append(tensor)
                dtypes.append((tensor.base.dtype, *tensor.block_shape))
            else:
                pointer = tensor.data_ptr()
                bits |= pointer
                pointers.append(pointer)
                dtypes.append(tensor.dtype)
        # One bit says it of all; where it is set, which of them Triton may assume to be aligned.
        odd = bits % ALIGNMENT_BYTES and tuple(isinstance(p, int) and p % ALIGNMENT_BYTES > 0 for p in pointers)
        key = (device, odd, warps, stages, constants, *dtypes)
        compiled = self._compiled.get(key)
        if compiled is None:
            arguments = (*tensors, *numbers, *constants)
            compiled = self._compile(key, functools.partial(_compile, self.kernel, device, arguments, warps, stages))
            if compiled is None:
                return
        stream = torch._C._cuda_getCurrentRawStream(device)
        compiled.run(
            grid[0],
            grid[1],
            1,
            stream,
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *pointers,
            *numbers,
            *constants,
        )

    def _compile(self, key: tuple[Any, ...], job: functools.partial[Any]) -> Any | None:
        """The compiled kernel; None where it is only started, inside ``compiling_ahead``."""
        pool = _pool.get()
        if pool is not None:
            if key not in self._pending:
                self._pending[key] = pool.submit(job)
            return None
        pending = self._pending.pop(key, None)
        compiled = self._compiled[key] = job() if pending is None else pending.result()
        return compiled


def _compile(kernel: Any, device: int, arguments: tuple[Any, ...], warps: int, stages: int) -> Any:
    with torch.cuda.device(device):  # the current device is a thread's own
        compiled = kernel.warmup(*arguments, grid=(1,), num_warps=warps, num_stages=stages)
        _ = compiled.run  # loads the binary and builds what launches it
    return compiled


@contextmanager
def launching_in_graph() -> Iterator[None]:
    """Inside, a launch is a node of the graph that is being traced, below Dynamo: for AOTAutograd and ``make_fx``."""
    token = _in_graph.set(True)
    try:
        yield
    finally:
        _in_graph.reset(token)


def is_compiling_ahead() -> bool:
    """Whether this is inside ``compiling_ahead``: also a kernel that only larger calls meet can be started there."""
    return not is_compiling() and _pool.get() is not None  # Dynamo does not read context variables


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Inside, a launch of a kernel that is not compiled yet starts its compilation on a thread, and launches nothing.

    So nothing that a call inside returns is computed; the next launch outside waits for what is still compiled.
    """
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="triton")
    token = _pool.set(pool)
    try:
        yield
    finally:
        _pool.reset(token)
        pool.shutdown(wait=False)


def start_compiler(device: torch.device) -> None:
    """Starts Triton's driver and compiler on a thread: the first kernel of a process waits 1 s for them.

    Does nothing off CUDA, where there is no launcher, or a second time. What fails there fails again, and is raised,
    at the first launch.
    """
    if device.type == "cuda" and Launcher.exists:
        _start(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _start(device: int) -> None:
    def compile_nothing() -> None:
        import triton

        _compile(triton.jit(_nothing), device, (torch.float32,), 4, 3)

    pool = ThreadPoolExecutor(1, thread_name_prefix="triton")
    pool.submit(compile_nothing)
    pool.shutdown(wait=False)


def _nothing(x) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - the argument of a Triton kernel has no type
    pass
