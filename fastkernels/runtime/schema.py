"""The operator schema of a task, read off its interface: argument types from annotations, result layouts by running.

One schema has one list of results; where an interface returns more with an argument than without, each is an op."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastkernels.errors import LoweringError
from fastkernels.tasks import Task

# One tensor, nothing, or a tuple in which True is a tensor and False is None.
Layout = tuple[bool, ...] | Literal["tensor", "none"]
_shown: dict[Any, dict[tuple[bool, ...], Layout]] = {}  # of layouts_by_case, which runs the reference
STATE = "fk_state"  # the last argument of every op: the implementation's parameters and buffers

SCALARS: dict[Any, str] = {
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
    torch.device: "Device",
}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of an interface method; ``type`` is None where no schema type can hold it (a callable)."""

    name: str
    type: str | None
    optional: bool
    sequence: bool
    tensor: bool
    default: Any

    def declaration(self, mark: str | None) -> str:
        """``Tensor(a0!)? name`` and the like."""
        text = self.type or ""
        if mark is not None:
            text = text.replace("Tensor", f"Tensor({mark}!)", 1)
        return f"{text}{'?' if self.optional else ''} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Arguments of an interface method, and what it returns where the annotation alone says so."""

    task: str
    method: str
    arguments: tuple[Argument, ...]
    layout: Layout | None
    mutates: tuple[str, ...]

    @property
    def entering(self) -> tuple[Argument, ...]:
        """The arguments that an op takes."""
        return tuple(a for a in self.arguments if a.type is not None)

    def schema(self, name: str, layout: Layout) -> str:
        """``name(Tensor x, Tensor? residual, Tensor[] fk_state) -> (Tensor, Tensor)``."""
        marks = {m: f"a{i}" for i, m in enumerate(self.mutates)}
        declared = [a.declaration(marks.get(a.name)) for a in self.entering]
        results = ["Tensor"] * count(layout)
        returns = results[0] if len(results) == 1 else f"({', '.join(results)})"
        return f"{name}({', '.join([*declared, f'Tensor[] {STATE}'])}) -> {returns}"

    def pattern(self, call: Sequence[Any]) -> tuple[bool, ...]:
        """Which of the optional tensors a call gives."""
        given = dict(zip((a.name for a in self.arguments), call, strict=False))
        return tuple(given.get(a.name, a.default) is not None for a in self.entering if a.tensor and a.optional)


def count(layout: Layout) -> int:
    """Tensors in a result of this layout."""
    return 1 if layout == "tensor" else 0 if layout == "none" else sum(layout)


def layout_of(result: Any) -> Layout | None:
    """The layout of what an interface returned; None for anything but a tensor, None, or a flat tuple of these."""
    if isinstance(result, torch.Tensor):
        return "tensor"
    if result is None:
        return "none"
    if isinstance(result, (tuple, list)) and all(r is None or isinstance(r, torch.Tensor) for r in result):
        return tuple(r is not None for r in result)
    return None


def tensors_in(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return (result,)
    return () if result is None else tuple(r for r in result if r is not None)


def signature_of(task: Task, method: str = "forward") -> Signature:
    """The signature of the interface's ``method``.

    Raises:
        LoweringError: an argument or result has an annotation that no operator schema can express.
    """
    function = getattr(task.interface, method, None)
    if function is None:
        raise LoweringError(f"task {task.name}: its interface {task.interface.__name__} has no method {method}.")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise LoweringError(f"task {task.name}: annotations of {method} cannot be resolved: {error}.") from error
    parameters = list(inspect.signature(function).parameters.values())[1:]
    arguments = tuple(_argument(task, method, p, hints.get(p.name)) for p in parameters)
    unknown = sorted(set(task.mutates) - {a.name for a in arguments})
    if method == "forward" and unknown:
        raise LoweringError(f"task {task.name}: mutates names {unknown}, which forward does not take.")
    return Signature(
        task=task.name,
        method=method,
        arguments=arguments,
        layout=_annotated_layout(hints.get("return", inspect.Parameter.empty)),
        mutates=tuple(a.name for a in arguments if a.name in task.mutates),
    )


def _argument(task: Task, method: str, parameter: inspect.Parameter, hint: Any) -> Argument:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        optional = len(rest) < len(typing.get_args(hint))
        hint = rest[0] if len(rest) == 1 else hint
    origin, inner = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not Ellipsis]
    sequence = origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence))
    if isinstance(hint, type) and issubclass(hint, torch.Tensor):
        kind: str | None = "Tensor"
    elif Callable in (hint, origin):
        kind = None
    elif hint in SCALARS:
        kind = SCALARS[hint]
    elif sequence and inner and all(a is torch.Tensor for a in inner):
        kind = "Tensor[]"
    elif sequence and inner and all(a is int for a in inner):
        kind = "SymInt[]"
    else:
        kind = ""
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY)
    if kind == "" or variadic:
        raise LoweringError(
            f"task {task.name}: argument {parameter.name} of {method} is annotated {hint!r}, which no operator schema "
            "can express. Use Tensor, int, float, bool, str or tuples of tensors, or lowering='inline'."
        )
    return Argument(
        name=parameter.name,
        type=kind,
        optional=optional,
        sequence=sequence,
        tensor=kind == "Tensor",
        default=parameter.default,
    )


def _annotated_layout(hint: Any) -> Layout | None:
    if hint is torch.Tensor:
        return "tensor"
    if hint is type(None) or hint is None:
        return "none"
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and inner and all(a is torch.Tensor for a in inner):
        return (True,) * len(inner)
    return None


def layouts_by_case(task: Task) -> dict[tuple[bool, ...], Layout]:
    """What the reference returns for each pattern of optional tensors that the task's small cases show."""
    key = (task.interface, task.cases)
    if key not in _shown:
        signature, found = signature_of(task), _shown.setdefault(key, {})
        for case in (c for c in task.cases() if not c.production):
            call = case.draw(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)
            pattern = signature.pattern(call)
            if pattern not in found:
                with torch.no_grad():
                    layout = layout_of(task.build(case).forward(*call))
                if layout is not None:
                    found[pattern] = layout
    return _shown[key]


Adapter = Callable[..., Any]


def adapter(
    signature: Signature,
    layouts: dict[tuple[bool, ...], Layout],
    ops: dict[Layout, Any],
    holders: Sequence[tuple[torch.nn.Module, str, str]],
    label: str,
) -> Adapter:
    """A function with the interface's own signature that calls the op of its result layout.

    ``holders`` are (module, table, name) of the tensors that follow as the last argument. Written out as source:
    Dynamo does not trace ``inspect.Signature.bind``, and a fixed signature costs nothing to call.
    """
    names = [a.name for a in signature.arguments]
    space: dict[str, Any] = {"refuse": functools.partial(_refuse, signature, label)}
    owners: dict[int, str] = {}
    state = []
    for module, table, leaf in holders:
        owner = owners.setdefault(id(module), f"owner{len(owners)}")
        space[owner] = module
        state.append(f"{owner}.{table}[{leaf!r}]")
    parameters = []
    for a in signature.arguments:
        if a.default is inspect.Parameter.empty:
            parameters.append(a.name)
        else:
            space[f"default_{a.name}"] = a.default
            parameters.append(f"{a.name}=default_{a.name}")
    body = [f"if {a.name} is not None: refuse({a.name!r})" for a in signature.arguments if a.type is None]
    passed = [f"list({a.name})" if a.sequence and not a.optional else a.name for a in signature.entering]
    passed.append(f"[{', '.join(state)}]")
    call = f"({', '.join(passed)})"
    optional = [a.name for a in signature.entering if a.tensor and a.optional]
    for i, (layout, op) in enumerate(ops.items()):
        space[f"op{i}"] = op
        lines = _returning(f"op{i}{call}", layout)
        if signature.layout is not None:
            body += lines
            continue
        for pattern in (p for p, made in layouts.items() if made == layout):
            tests = [f"{n} is {'not ' * given}None" for n, given in zip(optional, pattern, strict=True)]
            body += [f"if {' and '.join(tests) or 'True'}:", *(f"    {line}" for line in lines)]
    if signature.layout is None:
        body.append("refuse(None)")
    source = [f"def make({', '.join(space)}):", f"    def {signature.method}({', '.join(parameters)}):"]
    source += [*(f"        {line}" for line in body), f"    return {signature.method}"]
    made: dict[str, Any] = {}
    exec(compile("\n".join(source), f"<fastkernels op of {signature.task}({', '.join(names)})>", "exec"), made)
    return made["make"](**space)


def _returning(call: str, layout: Layout) -> list[str]:
    if layout == "tensor" or layout == "none":
        return [f"return {call}"]
    results = [f"r{i}" if present else "None" for i, present in enumerate(layout)]
    tensors = [r for r in results if r != "None"]
    taken = [f"{', '.join(tensors)} = {call}"] if tensors else [call]
    return [*taken, f"return ({', '.join(results)},)"]


def _refuse(signature: Signature, label: str, argument: str | None) -> None:
    if argument is None:
        optional = ", ".join(a.name for a in signature.entering if a.tensor and a.optional)
        raise LoweringError(
            f"{label}: no case of task {signature.task} shows what {signature.method} returns for this choice of "
            f"{optional}. Add such a case to the task, or give an example of the call to lower()."
        )
    raise LoweringError(
        f"{label}: argument {argument} of task {signature.task} is a callable, which no operator can take. Lower the "
        "parts of this candidate instead (lower_parts), or use lowering='inline'."
    )
