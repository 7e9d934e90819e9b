"""What a compiled graph was made from, for Inductor's and AOTAutograd's cache keys, so that no changed candidate meets
the code compiled for its predecessor.

Their own keys hold the traced graph, in which an operator is a name: not its fake, its backward, its parts, nor the
code behind these."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
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

BUILTIN = ("aten", "prims", "prim", "inductor", "_c10d_functional")  # changed with torch alone
TORCH = Path(torch.__file__).parent
OURS = Path(__file__).parents[1]
REGISTERED = re.compile(r"registered at (.+?):\d+")
INSTALLED = ("site-packages", "dist-packages")


def content_key(graph: fx.GraphModule, *, decisions: Iterable[str] = ()) -> str:
    """A hash of the Python code traced into ``graph`` and of the files that hold it, of what made the operators in it,
    and of ``decisions`` taken about it. Torch's own files are left out: its version is in the keys.

    An operator is made by the files that register it and by whatever is loaded from their folders: its fake, its
    backward and its parts may call anything there.
    """
    operators = sorted(_operators(graph), key=OpOverload.name)
    foreign = [op for op in operators if op.namespace != NAMESPACE]
    traced = _users(TracingContext.get_traced_code() or ())
    behind = _users(code for op in foreign for code in _python_of(op))
    makers = {Path(code.co_filename) for code in behind} | {file for op in foreign for file in _registering(op)}
    files = {Path(code.co_filename) for code in traced} | makers
    for root in {_root(file) for file in makers}:
        files |= _loaded_below(root)
    if len(foreign) < len(operators):  # the name is the candidate's content; fake and backward are the task's
        files |= _loaded_below(OURS / "tasks") | _loaded_below(OURS / "runtime")
    digest = hashlib.sha256(repr(sorted(decisions)).encode())
    for part in (*sorted(_digest(code) for code in traced | behind), *(_file_digest(file) for file in sorted(files))):
        digest.update(part)
    if any(not file.exists() for file in makers):  # built elsewhere: what was built stands for its sources
        digest.update(repr(_binaries()).encode())
    return digest.hexdigest()[:16]


def _operators(graph: fx.GraphModule) -> set[OpOverload]:
    """The operators that are not torch's own, in the graph and in the graphs inside it."""
    found: set[OpOverload] = set()
    for module in graph.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            for target in (node.target, *node.args):
                if isinstance(target, OpOverloadPacket):
                    found |= {getattr(target, name) for name in target.overloads()}
                elif isinstance(target, OpOverload):
                    found.add(target)
    return {op for op in found if op.namespace not in BUILTIN}


def _users(codes: Iterable[CodeType]) -> set[CodeType]:
    return {code for code in codes if not Path(code.co_filename).is_relative_to(TORCH)}


def _python_of(op: OpOverload) -> Iterator[CodeType]:
    """Code of an operator's fakes, and of what a wrapper made by ``torch.library.custom_op`` holds on to."""
    for kernel in singleton.find(op.name()).fake_impl.kernels:
        code = getattr(kernel.func, "__code__", None)
        if code is not None:
            yield code
        for cell in getattr(kernel.func, "__closure__", None) or ():
            held: Any = cell.cell_contents
            for value in (held, *(vars(held).values() if isinstance(held, torch.library.CustomOpDef) else ())):
                if hasattr(value, "__code__"):
                    yield value.__code__


def _registering(op: OpOverload) -> set[Path]:
    """Files, Python or C++, that the dispatcher says an operator's schema and kernels were registered in."""
    named = {Path(file) for file in REGISTERED.findall(torch._C._dispatch_dump(op.name())) if not file.startswith("<")}
    return {file for file in named if not file.is_relative_to(TORCH) and file != Path("/dev/null")}


def _root(file: Path) -> Path:
    """The folder of a file, or of the whole package that it is in; the file itself where it is installed alone."""
    root = file.parent
    while (root / "__init__.py").exists() and (root.parent / "__init__.py").exists():
        root = root.parent
    return file if root.name in INSTALLED else root


def _loaded_below(root: Path) -> set[Path]:
    """Files of the modules that are loaded from below ``root``, without what is installed there."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    below = {Path(file) for file in files if file and Path(file).is_relative_to(root)}
    return {f for f in below if f.suffix == ".py" and not {*f.relative_to(root).parts} & {*INSTALLED}}


def _binaries() -> list[tuple[str, int, int]]:
    """Extension modules and operator libraries that are loaded, each with its size and time of change."""
    modules = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    extensions = {file for file in modules if file.endswith((".so", ".pyd"))}
    files = sorted(f for f in extensions | torch.ops.loaded_libraries if not Path(f).is_relative_to(TORCH))
    stats = [(f, Path(f).stat()) for f in files if Path(f).exists()]
    return [(f, s.st_size, s.st_mtime_ns) for f, s in stats]


def _digest(code: CodeType) -> bytes:
    inner = b"".join(_digest(c) for c in code.co_consts if isinstance(c, CodeType))
    constants = [repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c) for c in _plain(code.co_consts)]
    return hashlib.sha256(code.co_code + repr((code.co_names, constants)).encode() + inner).digest()


def _plain(constants: Iterable[Any]) -> list[Any]:
    return [c for c in constants if not isinstance(c, CodeType)]


def _file_digest(file: Path) -> bytes:
    try:
        stat = file.stat()
        return _content_digest(str(file), stat.st_mtime_ns, stat.st_size)
    except OSError:  # code made by exec, or a file that is gone: the code itself is in the key
        return b""


@functools.lru_cache(maxsize=4096)
def _content_digest(file: str, changed: int, size: int) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()
