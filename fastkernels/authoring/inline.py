"""Inlines a task's reference: the source of an interface and of all it needs of this library, as one plain text.

What is left needs torch alone: definitions are taken as they are written, in the order in which they are needed."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from fastkernels.errors import EvaluationError

LIBRARY = "fastkernels"
BASE = ("fastkernels.tasks.interface", "Interface")  # remembers its constructor call, for patches: nn.Module does
REGISTRY = ("fastkernels.tasks.registry", "get_task")
OPERATOR_NAMESPACE = "fastkernels_tasks"
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Inlined:
    """Import lines, definitions, and the name that each root has in them."""

    imports: tuple[str, ...]
    definitions: str
    names: Mapping[type, str]


@dataclass(frozen=True, kw_only=True)
class _Module:
    """Top-level definitions of a module, and where its other names come from."""

    lines: tuple[bytes, ...]
    nodes: Mapping[str, ast.stmt]
    origins: Mapping[str, tuple[str, str]]  # name: module, name in it ("" for the module itself)


def inline(
    root: type[nn.Module], *, interfaces: Mapping[str, type[nn.Module]], taken: Iterable[str], namespace: str
) -> Inlined:
    """The source of ``root`` and of what it needs.

    Args:
        interfaces: by task name, those that the reference looks up by name.
        taken: names that the text around already has.
        namespace: of operators that the definitions register, so that two files can be imported side by side.

    Raises:
        EvaluationError: it needs something of this library that is no definition.
    """
    bundle = _Bundle(interfaces=interfaces, taken=set(taken))
    bundle.need(_key(root))
    text = "\n\n\n".join(bundle.text(key) for key in bundle.order).replace(OPERATOR_NAMESPACE, namespace)
    names = {root: bundle.names[_key(root)]}
    return Inlined(imports=tuple(sorted(bundle.imports)), definitions=text, names=names)


def _key(cls: type) -> Key:
    return cls.__module__, cls.__name__


@dataclass(kw_only=True)
class _Bundle:
    interfaces: Mapping[str, type[nn.Module]]
    taken: set[str]
    order: list[Key] = field(default_factory=list)
    names: dict[Key, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)

    def need(self, key: Key) -> None:
        """Puts the definition ``key`` into the order, after what it needs itself."""
        if key in self.names:
            return
        module, name = key
        self.names[key] = self._free(name, module)
        if key == REGISTRY:
            for cls in self.interfaces.values():
                self.need(_key(cls))
        else:
            source = _parse(module)
            if name not in source.nodes:
                raise EvaluationError(f"{module}.{name}: not a definition of the module, so it cannot be written out.")
            for used, found in _used(source.nodes[name], module):
                self._use(used, found)
        self.order.append(key)

    def _use(self, used: ast.Name | ast.Attribute, found: Key) -> None:
        home, original = found
        if found == BASE:
            self.imports.add("from torch import nn")
        elif home.partition(".")[0] == LIBRARY:
            self.need(found)
        else:
            name = ast.unparse(used)
            self.imports.add(import_line(home, original, name))
            self.taken.add(name)

    def _free(self, name: str, module: str) -> str:
        chosen = name
        while chosen in self.taken:
            chosen = f"{module.rpartition('.')[2]}_{chosen}"
        self.taken.add(chosen)
        return chosen

    def text(self, key: Key) -> str:
        """The definition as written, under the names that it and what it uses have here."""
        if key == REGISTRY:
            return self._registry()
        module, name = key
        source = _parse(module)
        node = source.nodes[name]
        edits: list[tuple[int, int, int, str]] = []
        for used, found in _used(node, module):
            old_name = ast.unparse(used)
            new = "nn.Module" if found == BASE else self.names.get(found, old_name)
            if new != old_name:
                edits.append((used.lineno, used.col_offset, used.end_col_offset or 0, new))
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        lines = list(source.lines[start - 1 : node.end_lineno])
        for line, left, right, new in sorted(edits, reverse=True):
            old = lines[line - start]
            lines[line - start] = old[:left] + new.encode() + old[right:]
        text = b"\n".join(lines).decode()
        chosen = self.names[key]
        return text if chosen == name else _renamed(text, name, chosen)

    def _registry(self) -> str:
        self.imports |= {"from torch import nn", "from types import SimpleNamespace"}
        table = ", ".join(f'"{task}": {self.names[_key(cls)]}' for task, cls in self.interfaces.items())
        return (
            f"def {self.names[REGISTRY]}(name: str) -> SimpleNamespace:\n"
            f'    """The task of that name: its interface."""\n'
            f"    interfaces: dict[str, type[nn.Module]] = {{{table}}}\n"
            f"    return SimpleNamespace(interface=interfaces[name])"
        )


def _renamed(text: str, name: str, chosen: str) -> str:
    """A definition under another name; its own uses of the name were edited before."""
    for head in (f"def {name}(", f"class {name}(", f"class {name}:"):
        if head in text:
            return text.replace(head, head.replace(name, chosen), 1)
    return text if text.startswith(chosen) else text.replace(name, chosen, 1)


def import_line(home: str, original: str, name: str) -> str:
    if not original:
        return f"import {home}" if name == home.partition(".")[0] else f"import {home} as {name}"
    return f"from {home} import {original}" + ("" if name == original else f" as {name}")


def merged(lines: Iterable[str]) -> list[str]:
    """Import lines sorted, those from one module as one.

    >>> merged(["from a import c", "import b", "from a import b"])
    ['import b', 'from a import b, c']
    """
    whole = sorted({line for line in lines if line.startswith("import ")})
    names: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("from "):
            home, _, name = line[5:].partition(" import ")
            names.setdefault(home, set()).add(name)
    return [*whole, *(f"from {home} import {', '.join(sorted(names[home]))}" for home in sorted(names))]


def _used(node: ast.stmt, module: str) -> Iterator[tuple[ast.Name | ast.Attribute, Key]]:
    """What a definition uses of the module's top level, annotations included, with the place where that is defined.

    Of a module of this library only its attributes are used: ``rms_norm.normalize`` is the function itself.
    """
    whole: set[int] = set()
    for part in ast.walk(node):  # outer before inner: an attribute comes before the name that it is of
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            found = resolve(module, part.value.id)
            if found is not None and not found[1] and found[0].partition(".")[0] == LIBRARY:
                whole.add(id(part.value))
                yield part, resolve(found[0], part.attr) or (found[0], part.attr)
        elif isinstance(part, ast.Name) and id(part) not in whole:
            found = resolve(module, part.id)
            if found is not None:
                yield part, found


def resolve(module: str, name: str) -> Key | None:
    """Where a name of a module is defined; None for a builtin or a local name."""
    source = _parse(module)
    if name in source.nodes:
        return module, name
    home, original = source.origins.get(name, ("", ""))
    if not home:
        return None
    if original and home.partition(".")[0] == LIBRARY:
        importlib.import_module(home)
        value = getattr(sys.modules[home], original, None)
        if inspect.ismodule(value):
            return value.__name__, ""
        deeper = resolve(home, original)
        return deeper if deeper is not None else (home, original)
    return home, original


@functools.cache
def _parse(module: str) -> _Module:
    text = inspect.getsource(importlib.import_module(module))
    nodes: dict[str, ast.stmt] = {}
    origins: dict[str, tuple[str, str]] = {}
    for node in ast.parse(text).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                nodes[node.name] = node
            case ast.Assign():
                nodes |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                nodes[name] = node
            case ast.Import():
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    origins[alias.asname or whole] = (whole, "")
            case ast.ImportFrom():
                for alias in node.names:
                    origins[alias.asname or alias.name] = (node.module or "", alias.name)
    return _Module(lines=tuple(text.encode().split(b"\n")), nodes=nodes, origins=origins)
