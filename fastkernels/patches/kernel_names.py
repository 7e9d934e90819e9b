"""Which device kernels belong to a candidate: by the names under which a profiler shows them.

Triton functions and extension libraries that are globals of the Python modules which define its class. What torch
ships (cuBLAS, aten) belongs to nobody."""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import BuiltinFunctionType, ModuleType
from typing import Any

from torch import nn

NOT_A_CANDIDATES = ("torch", "triton", "numpy", "builtins")  # packages whose extension modules are nobody's proof
SUFFIXES = (*EXTENSION_SUFFIXES, ".so", ".pyd")
# Registration hands the driver each kernel's symbol as a C string, which a stripped library keeps too.
SYMBOL = re.compile(rb"\0([A-Za-z_][A-Za-z0-9_$.]*)(?=\0)")


@dataclass(frozen=True, kw_only=True)
class KernelNames:
    """The kernels of one candidate: names of Triton functions, and libraries whose kernels are its own."""

    triton: frozenset[str]
    libraries: tuple[Path, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.triton or any(launches(library, name) for library in self.libraries)


def kernel_names(cls: type[nn.Module]) -> KernelNames:
    """The kernels of a candidate's class, as of now: a Triton function with a ``repr`` has a name once it is compiled.

    >>> kernel_names(nn.Linear)
    KernelNames(triton=frozenset(), libraries=())
    """
    values = [value for base in cls.__mro__ for value in _globals(base)]
    names = frozenset(name for value in values for name in _triton_names(value))
    libraries = {library for value in values if (library := _library(value)) is not None}
    return KernelNames(triton=names, libraries=tuple(sorted(libraries)))


def _globals(cls: type) -> list[Any]:
    if cls.__module__.partition(".")[0] in ("torch", "builtins"):
        return []
    return list(vars(sys.modules[cls.__module__]).values()) if cls.__module__ in sys.modules else []


def _triton_names(value: Any) -> Iterator[str]:
    """Names of a ``triton.jit`` function, also under an autotuner or heuristics; nothing where Triton is not loaded."""
    jit = sys.modules.get("triton.runtime.jit")
    if jit is None:
        return
    while isinstance(value, jit.KernelInterface) and not isinstance(value, jit.JITFunction):
        value = getattr(value, "fn", None)
    if isinstance(value, jit.JITFunction):
        yield value.__name__
        for compiled, *_ in list(getattr(value, "device_caches", {}).values()):
            for kernel in list(compiled.values()):
                name = getattr(getattr(kernel, "metadata", None), "name", None)  # none while it is being compiled
                if isinstance(name, str):
                    yield name


def _library(value: Any) -> Path | None:
    """The file of an extension module, given it or one of its functions."""
    if isinstance(value, BuiltinFunctionType) and value.__module__ is not None:
        value = sys.modules.get(value.__module__)
    if not isinstance(value, ModuleType) or value.__name__.partition(".")[0] in NOT_A_CANDIDATES:
        return None
    file = getattr(value, "__file__", None)
    return Path(file) if file is not None and file.endswith(SUFFIXES) else None


def launches(library: Path, name: str) -> bool:
    """Whether a library registers a kernel that a profiler shows as ``name``, demangled.

    Raises:
        OSError: the library cannot be read.
    """
    return name in _symbols(library)


@functools.cache
def _symbols(library: Path) -> frozenset[str]:
    found = set(SYMBOL.findall(library.read_bytes()))
    return frozenset(_demangle(s) if s.startswith(b"_Z") else s.decode() for s in found)


def _demangle(symbol: bytes) -> str:
    demangle, free = _abi()
    pointer = demangle(symbol, None, None, None)
    if not pointer:
        return symbol.decode()
    try:
        return ctypes.string_at(pointer).decode()
    finally:
        free(pointer)


@functools.cache
def _abi() -> tuple[Any, Any]:
    """The C++ runtime's demangler, the one that profilers use, and what frees its results."""
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.argtypes, demangle.restype = [ctypes.c_char_p] + [ctypes.c_void_p] * 3, ctypes.c_void_p
    free = ctypes.CDLL(None).free
    free.argtypes, free.restype = [ctypes.c_void_p], None
    return demangle, free
