"""Signatures of an interface as they are written in its source, and the imports that their types need."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastkernels.authoring.inline import import_line, resolve
from fastkernels.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method to write out: its head (``def ... :``), the call that passes its arguments on, and imports."""

    name: str
    head: str
    passed_on: str
    imports: frozenset[str]
    doc: str


def methods_of(interface: type[nn.Module]) -> list[Method]:
    """The constructor, ``forward``, and the other public methods that an interface defines, in this order.

    >>> from fastkernels.tasks.L1.silu import SiLU
    >>> [method.head for method in methods_of(SiLU)]
    ['def forward(self, x: torch.Tensor) -> torch.Tensor:']
    """
    own = [n for n, value in vars(interface).items() if inspect.isfunction(value) and not n.startswith("_")]
    constructor = ["__init__"] if interface.__init__ is not nn.Module.__init__ else []
    names = [*constructor, "forward", *(n for n in own if n != "forward")]
    return [_method(getattr(interface, name)) for name in names]


def _method(function: Callable[..., Any]) -> Method:
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise EvaluationError(f"{function.__qualname__}: not written as a function, so it has no stub.")
    arguments = node.args
    parts = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args][1:]]
    parts += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    parts += [f"{argument.arg}={argument.arg}" for argument in arguments.kwonlyargs]
    parts += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    returns = f" -> {_as_written(node.returns, source)}" if node.returns is not None else ""
    imports = set()
    outside = [*_annotations(arguments), *arguments.defaults, *arguments.kw_defaults, node.returns]
    for part in [p for tree in outside if tree is not None for p in ast.walk(tree)]:
        if isinstance(part, ast.Name):
            found = resolve(function.__module__, part.id)
            if found is not None:
                imports.add(import_line(*found, part.id))
    return Method(
        name=node.name,
        head=f"def {node.name}({_written(arguments, source)}){returns}:",
        passed_on=f"super().{node.name}({', '.join(parts)})",
        imports=frozenset(imports),
        doc=(ast.get_docstring(node) or "").partition("\n")[0],
    )


def _written(arguments: ast.arguments, source: str) -> str:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [_argument(a, d, source) for a, d in zip(positional, defaults, strict=True)]
    if arguments.vararg is not None:
        parts.append(f"*{_argument(arguments.vararg, None, source)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parts += [_argument(a, d, source) for a, d in keywords]
    if arguments.kwarg is not None:
        parts.append(f"**{_argument(arguments.kwarg, None, source)}")
    return ", ".join(parts)


def _argument(argument: ast.arg, default: ast.expr | None, source: str) -> str:
    typed = argument.arg
    if argument.annotation is not None:
        typed = f"{typed}: {_as_written(argument.annotation, source)}"
    if default is None:
        return typed
    equals = "=" if argument.annotation is None else " = "
    return f"{typed}{equals}{_as_written(default, source)}"


def _as_written(node: ast.expr, source: str) -> str:
    """In one line, with the quotes and digits of the source."""
    return " ".join((ast.get_source_segment(source, node) or ast.unparse(node)).split())


def _annotations(arguments: ast.arguments) -> list[ast.expr]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [a.annotation for a in every if a is not None and a.annotation is not None]
