"""What the code of a model's class says of how it uses what it holds: the functions it names, the results it drops."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn

OFF_PLATFORM = ("_is_npu",)  # flags of a platform that no candidate runs on


@functools.cache
def named_globals(cls: type[nn.Module]) -> frozenset[str]:
    """Globals that the methods of ``cls`` name, but for its constructor: its own methods, and those it inherits and
    does not replace."""
    pending: list[CodeType] = [f.__code__ for f in _methods(cls)]
    found: set[str] = set()
    while pending:
        code = pending.pop()
        found |= {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(found)


@functools.cache
def drops_result_of(cls: type[nn.Module], child: str) -> bool:
    """Whether a method of ``cls`` calls ``self.<child>`` and uses nothing that it returns: it relies on arguments that
    are written in place. False where no source can be read."""
    return any(_drops(tree, child) for tree in map(_syntax_of, _methods(cls)) if tree is not None)


@functools.cache
def heads_apart(cls: type[nn.Module], child: str) -> bool:
    """Whether each call of ``self.<child>`` in the methods of ``cls`` has a query that was shaped with its heads on an
    axis of their own, and there is such a call. False where no source can be read."""
    trees = [tree for tree in map(_syntax_of, _methods(cls)) if tree is not None]
    calls = [(tree, n) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.expr) and _calls(n, child)]
    return bool(calls) and all(_apart(tree, call) for tree, call in calls)


def _methods(cls: type[nn.Module]) -> Iterator[FunctionType]:
    for name in dir(cls):
        method = inspect.unwrap(getattr(cls, name))  # torch.compile and its like wrap some
        method = getattr(method, "__func__", method)
        if name != "__init__" and isinstance(method, FunctionType) and not method.__module__.startswith("torch."):
            yield method


def _syntax_of(method: FunctionType) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError):
        return None


def _drops(tree: ast.Module, child: str) -> bool:
    results = [
        {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Assign) and _calls(statement.value, child)
        for target in statement.targets
    ]
    alone = any(isinstance(s, ast.Expr) and _calls(s.value, child) for s in ast.walk(tree))
    used = set(_read(tree)) if results else set()
    return alone or any(not names & used for names in results)


def _apart(tree: ast.Module, call: ast.expr) -> bool:
    """What the assignments of the query before the call leave of its shape; any but these keep it."""
    query = call.args[1] if isinstance(call, ast.Call) and len(call.args) > 1 else None
    if not isinstance(query, ast.Name):
        return False
    before = [s for s in ast.walk(tree) if isinstance(s, ast.Assign) and s.lineno < call.lineno]
    apart = False
    for statement in sorted(before, key=lambda s: s.lineno):
        named = {n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        value = statement.value
        if query.id not in named or not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
            continue
        if value.func.attr in ("unflatten", "unsqueeze"):
            apart = True
        elif value.func.attr in ("reshape", "view"):
            apart = len(value.args) > 2
        elif value.func.attr in ("flatten", "split", "view_as"):
            apart = False
    return apart


def _calls(value: ast.expr, child: str) -> bool:
    called = value.func if isinstance(value, ast.Call) else None
    return (
        isinstance(called, ast.Attribute)
        and called.attr == child
        and isinstance(called.value, ast.Name)
        and called.value.id == "self"
    )


def _read(node: ast.AST) -> Iterator[str]:
    """Names whose value is used, but for what only another platform runs."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id in OFF_PLATFORM:
        nodes: list[ast.AST] = [*node.orelse]
    else:
        nodes = [*ast.iter_child_nodes(node)]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    for inner in nodes:
        yield from _read(inner)
