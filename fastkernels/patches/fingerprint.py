"""Structural fingerprints: a hash of ``forward``'s syntax with names, docstrings and annotations stripped.

Copied modules (LlamaMLP, MistralMLP, ...) share it, so one adapter serves all copies."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import sys
import textwrap

from torch import nn


class _Anonymous(ast.NodeTransformer):
    """Numbers variables in order of appearance and drops annotations; attribute names stay, they carry meaning."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def _number(self, name: str) -> str:
        return self.names.setdefault(name, f"v{len(self.names)}")

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(id=self._number(node.id), ctx=node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(arg=self._number(node.arg), annotation=None)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        value = node.value if node.value is not None else ast.Constant(None)
        return self.visit(ast.Assign(targets=[node.target], value=value))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        return ast.FunctionDef(
            name="f",
            args=self.visit(node.args),
            body=[self.visit(statement) for statement in body],
            decorator_list=[],
            returns=None,
        )


@functools.cache
def syntax_of(cls: type[nn.Module]) -> ast.FunctionDef | None:
    """The syntax tree of ``cls.forward``, or None where its source cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None
    return tree.body[0] if tree.body and isinstance(tree.body[0], ast.FunctionDef) else None


@functools.cache
def argument_names(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the arguments of ``cls.forward``, without ``self``."""
    return tuple(inspect.signature(cls.forward).parameters)[1:]


@functools.cache
def returned_value(cls: type[nn.Module]) -> ast.expr | None:
    """What the only ``return`` of ``cls.forward`` returns; None where there is another number of them."""
    tree = syntax_of(cls)
    returns = [n.value for n in ast.walk(tree) if isinstance(n, ast.Return)] if tree is not None else []
    return returns[0] if len(returns) == 1 else None


@functools.cache
def built_at_return(cls: type[nn.Module]) -> tuple[type, frozenset[str | None]] | None:
    """The class that ``cls.forward`` builds where it returns, and the keywords that it gives it."""
    value = returned_value(cls)
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
        return None
    built = getattr(sys.modules[cls.__module__], value.func.id, None)
    return (built, frozenset(k.arg for k in value.keywords)) if isinstance(built, type) else None


@functools.cache
def fingerprint(cls: type[nn.Module]) -> str | None:
    """Hash of the anonymous syntax of ``cls.forward``; None where the source cannot be read."""
    tree = syntax_of(cls)
    if tree is None:
        return None
    anonymous = ast.fix_missing_locations(_Anonymous().visit(ast.parse(ast.unparse(tree)).body[0]))
    return hashlib.sha256(ast.dump(anonymous).encode()).hexdigest()[:16]


@functools.cache
def known_class(name: str) -> type[nn.Module] | None:
    """The class ``module:Class``, or None where this version of the host does not have it."""
    module, _, cls = name.partition(":")
    try:
        return getattr(importlib.import_module(module), cls, None)
    except ImportError:
        return None


@functools.cache
def evidence(cls: type[nn.Module], known: tuple[str, ...]) -> str:
    """How surely ``cls`` is one of the ``known`` classes: ``class``, ``fingerprint``, or only ``schema``."""
    classes = [k for k in map(known_class, known) if k is not None]
    if cls in classes:
        return "class"
    mark = fingerprint(cls)
    return "fingerprint" if mark is not None and mark in {fingerprint(k) for k in classes} else "schema"


@functools.cache
def depends_on_layer_index(cls: type[nn.Module]) -> bool:
    """True where ``forward`` reads its layer's index for more than the cache's slot (every fourth layer without
    RoPE, say): layers of such a class cannot share one probe verdict."""
    tree = syntax_of(cls)
    if tree is None:
        return True
    cache_arguments = {
        id(part)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        for argument in (*call.args, *(k.value for k in call.keywords))
        for part in ast.walk(argument)
        if call.func.attr in ("update", "get_seq_length", "get_mask_sizes")
    }
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("layer_idx", "layer_id") and id(node) not in cache_arguments
        for node in ast.walk(tree)
    )
