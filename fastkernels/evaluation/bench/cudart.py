"""The CUDA runtime that torch has loaded, called through ctypes: torch itself does not compose graphs."""

from __future__ import annotations

import ctypes
import functools
import pathlib
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import torch

DEVICE_TO_DEVICE = 3  # of cudaMemcpyKind
USE_NODE_PRIORITY = 8  # cudaGraphInstantiateFlagUseNodePriority: as torch instantiates its own
_NODE = (POINTER(c_void_p), c_void_p, POINTER(c_void_p), c_size_t)  # node, graph, nodes before it, how many
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaGraphCreate": (POINTER(c_void_p), c_uint),
    "cudaGraphGetNodes": (c_void_p, POINTER(c_void_p), POINTER(c_size_t)),
    "cudaGraphAddChildGraphNode": (*_NODE, c_void_p),
    "cudaGraphAddMemcpyNode1D": (*_NODE, c_void_p, c_void_p, c_size_t, c_int),
    # Not cudaGraphInstantiate, whose arguments were others before CUDA 12.
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphUpload": (c_void_p, c_void_p),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
}


class Runtime:
    """The functions of ``_SIGNATURES``; each raises RuntimeError where its status is not 0."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, c_int
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            function = getattr(self._library, name)
            function.argtypes, function.restype = (c_int,), c_char_p
        self._library.cudaGetLastError.argtypes, self._library.cudaGetLastError.restype = (), c_int

    def call(self, function: str, *arguments: Any) -> None:
        """Calls a function by its name.

        Raises:
            RuntimeError: with the error's name and the function's.
        """
        status = getattr(self._library, function)(*arguments)
        if status:
            self._library.cudaGetLastError()  # else torch's next call reports it
            name, text = (getattr(self._library, f"cudaGetError{what}")(status).decode() for what in ("Name", "String"))
            raise RuntimeError(f"{function}: {name} ({text})")


@functools.cache
def runtime() -> Runtime:
    """The loaded runtime of torch's own CUDA version, or the one that is loaded.

    Raises:
        RuntimeError: no shared library of it is loaded.
    """
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    paths = dict.fromkeys(p for line in lines if "libcudart.so" in (p := line.partition("/")[2]))
    if not paths:
        raise RuntimeError("no libcudart is loaded: calls cannot be composed to one graph")
    major = f".so.{(torch.version.cuda or '').partition('.')[0]}"
    return Runtime("/" + next((p for p in paths if major in p), next(iter(paths))))
