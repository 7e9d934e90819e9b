"""Which modules hold a module, and whether their code uses it in a way that a forward in its place would not see."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys

from torch import nn

from fastkernels.patches.recognise import Host


def owners(module: nn.Module, host: Host) -> list[tuple[nn.Module, str]]:
    """The modules that have ``module`` as a child, each with the name under which they do."""
    if "owners" not in host.memo:
        held: dict[int, list[tuple[nn.Module, str]]] = {}
        for owner in host.model.modules():
            for name, child in owner._modules.items():
                if child is not None:
                    held.setdefault(id(child), []).append((owner, name))
        host.memo["owners"] = held
    found: list[tuple[nn.Module, str]] = host.memo["owners"].get(id(host.images.get(id(module), module)), [])
    return found


def passed_over(module: nn.Module, host: Host) -> str:
    """Why calls of ``module`` do not all go through its forward, or an empty string: an owner calls
    ``forward_native`` of it, say."""
    for owner, name in owners(module, host):
        method = _called_method(type(owner), name)
        if method is not None:
            return f"{type(owner).__name__} calls {name}.{method}, which passes a forward of its own over"
    return ""


@functools.cache
def _called_method(cls: type, name: str) -> str | None:
    found = re.search(rf"\b{name}\.(forward_\w+)\(", _source(cls))
    return found.group(1) if found else None


def relied_on_in_place(module: nn.Module, host: Host) -> str:
    """Why a rotary embedding that returns new tensors would be wrong here, or an empty string: somebody in the file
    of an owner's class drops what it returns, and goes on with its arguments."""
    for owner, name in owners(module, host):
        if _drops_result(type(owner).__module__, name):
            return f"{type(owner).__module__} drops what it returns and relies on it to turn query and key in place"
    return ""


@functools.cache
def _drops_result(file: str, name: str) -> bool:
    calls = (node.value for node in ast.walk(_tree(file)) if isinstance(node, ast.Expr))
    names = (getattr(c.func, "attr", getattr(c.func, "id", "")) for c in calls if isinstance(c, ast.Call))
    return not {name, "rotary_emb"}.isdisjoint(names)


def _tree(file: str) -> ast.Module:
    try:
        return ast.parse(inspect.getsource(sys.modules[file]))
    except (OSError, TypeError, KeyError):
        return ast.Module(body=[], type_ignores=[])


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""
