"""Exceptions that a candidate catches and goes on without: in a call, and when its file was imported."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastkernels.evaluation.conflicts.observe import is_user_file
from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.skip import wants_cuda

# A look-up that misses, and an iterator's end, are ordinary control flow; a package that is not installed is optional.
ORDINARY = (LookupError, StopIteration, StopAsyncIteration, GeneratorExit, ModuleNotFoundError)


@contextlib.contextmanager
def swallowed() -> Iterator[list[Evidence]]:
    """Collects what is raised in the candidate's frames meanwhile. Where the call returns, all of it was caught."""
    found: dict[int, Evidence] = {}
    kept: list[BaseException] = []  # alive, so that no other takes an address

    def local(frame: types.FrameType, event: str, arg: Any) -> Any:
        if event == "exception" and isinstance(arg[1], BaseException) and id(arg[1]) not in found:
            error = arg[1]
            if not isinstance(error, ORDINARY) and not wants_cuda(error):
                text = f"{type(error).__name__}: {error}"[:1000]
                found[id(error)] = Evidence(text=text, file=frame.f_code.co_filename, line=frame.f_lineno)
                kept.append(error)
        return local

    former = sys.gettrace()
    answers: list[Evidence] = []
    sys.settrace(lambda frame, *_: local if is_user_file(frame.f_code.co_filename) else None)
    try:
        yield answers
    finally:
        sys.settrace(former)
        answers += found.values()


def swallowed_at_import(cls: type) -> Evidence | None:
    """The handler, at the top level of the file that defines ``cls``, which left its mark: it sets a name to None or
    False, and that is what the name holds. Not where only imports are tried, nor a CUDA build without a device."""
    try:
        file = inspect.getfile(cls)
        tree = ast.parse(Path(file).read_text())
    except (TypeError, OSError, SyntaxError):
        return None
    names = vars(sys.modules[cls.__module__])
    for tried in (node for node in tree.body if isinstance(node, ast.Try)):
        body = ast.unparse(ast.Module(body=tried.body, type_ignores=[]))
        if all(isinstance(s, (ast.Import, ast.ImportFrom, ast.Assign)) and not _calls(s) for s in tried.body):
            continue
        if not torch.cuda.is_available() and ("cuda" in body.lower() or "triton" in body.lower()):
            continue
        for handler in tried.handlers:
            for name in _disabled(handler):
                if name in names and (names[name] is None or names[name] is False):
                    text = f"importing the file, line {tried.lineno} raised and was caught: {name} is {names[name]}"
                    return Evidence(text=text, file=file, line=handler.lineno)
    return None


def _calls(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(statement))


def _disabled(handler: ast.ExceptHandler) -> Iterator[str]:
    """Names that a handler sets to None or False."""
    for node in handler.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value in (None, False):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
