"""What a compiled graph was made from, for Inductor's and AOTAutograd's cache keys, so that no changed candidate meets
the code compiled for its predecessor.

Their own keys hold the traced graph, in which an operator is a name: neither its fake nor the code behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext
from torch._library.simple_registry import singleton
from torch._ops import OpOverload, OpOverloadPacket

from fastkernels.runtime.operator import NAMESPACE

OWN = ("aten", "prims", "prim", "inductor", "_c10d_functional", NAMESPACE)  # changed with torch, or named by content
TORCH = str(Path(torch.__file__).parent)


def content_key(graph: fx.GraphModule, *, decisions: Iterable[str] = ()) -> str:
    """A hash of the Python code traced into ``graph`` and of the files that hold it, of the fakes of foreign custom
    operators in it, and of ``decisions`` taken about it. Torch's own files are left out: its version is in the keys."""
    codes = {*(TracingContext.get_traced_code() or ()), *_fakes(graph)}
    ours = [code for code in codes if not code.co_filename.startswith(TORCH)]
    files = sorted({code.co_filename for code in ours})
    digest = hashlib.sha256(repr(sorted(decisions)).encode())
    for part in (*sorted(_digest(code) for code in ours), *(_file_digest(file) for file in files)):
        digest.update(part)
    return digest.hexdigest()[:16]


def _fakes(graph: fx.GraphModule) -> Iterator[CodeType]:
    """Code of the fakes of other people's operators in the graph: the caches know those by name alone."""
    for node in graph.graph.nodes:
        target: Any = node.target
        packet = isinstance(target, OpOverloadPacket)
        for op in [getattr(target, name) for name in target.overloads()] if packet else [target]:
            if isinstance(op, OpOverload) and op.namespace not in OWN:
                for kernel in singleton.find(op.name()).fake_impl.kernels:
                    code = getattr(kernel.func, "__code__", None)
                    if code is not None:
                        yield code
                    yield from _closed_over(kernel.func)


def _closed_over(function: Any) -> Iterator[CodeType]:
    """Code of the functions that a wrapper made by ``torch.library.custom_op`` holds on to."""
    for cell in getattr(function, "__closure__", None) or ():
        held = cell.cell_contents
        for value in (held, *(vars(held).values() if isinstance(held, torch.library.CustomOpDef) else ())):
            if hasattr(value, "__code__"):
                yield value.__code__


def _digest(code: CodeType) -> bytes:
    inner = b"".join(_digest(c) for c in code.co_consts if isinstance(c, CodeType))
    constants = [repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c) for c in _plain(code.co_consts)]
    return hashlib.sha256(code.co_code + repr((code.co_names, constants)).encode() + inner).digest()


def _plain(constants: Iterable[Any]) -> list[Any]:
    return [c for c in constants if not isinstance(c, CodeType)]


def _file_digest(file: str) -> bytes:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:  # code made by exec, or a file that is gone: the code itself is in the key
        return b""
