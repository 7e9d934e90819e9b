"""The text of a stub: a candidate file with everything its author must know, that delegates to the reference."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fastkernels.authoring.inline import LIBRARY, merged
from fastkernels.authoring.shapes import Shaped
from fastkernels.authoring.signature import Method, methods_of
from fastkernels.tasks import Task

WIDTH = 118
MOST_SHAPES = 12  # lines of shapes in a docstring


def stub(
    task: Task,
    cases: Sequence[Shaped],
    *,
    of: int,
    told: str,
    more: str,
    sites: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The candidate file of ``task``.

    Args:
        cases: whose shapes and costs the docstring lists, the most important first.
        of: how many cases there are, listed or not.
        told: where the cases come from, as a phrase.
        more: where those are that are not listed.
        sites: paths in the author's architecture, by constructor facts in words.
    """
    interface = task.interface
    module = interface.__module__.rpartition(".")
    methods = methods_of(interface)
    imports = {line for method in methods for line in method.imports}
    imports |= {f"from {module[0]} import {module[2]} as task"}
    ours = [line for line in imports if LIBRARY in line]
    torchs = [line for line in imports if line not in ours and "torch" in line]
    plain = [line for line in imports if line not in ours and line not in torchs]
    groups = "\n\n".join("\n".join(merged(group)) for group in (plain, torchs, ours) if group)
    text = f'''"""Candidate for task {task.name} (L{task.level}, {task.family}). A stub: it delegates to the reference.

{_facts(task, cases)}

{_shapes(task, cases, of=of, told=told, more=more)}{_places(sites or {})}"""

from __future__ import annotations

{groups}


class {interface.__name__}(task.{interface.__name__}):
{textwrap.indent(_docstring(task), "    ")}

{textwrap.indent(chr(10).join(map(_written, methods)), "    ")}'''
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines()) + "\n"


def _facts(task: Task, cases: Sequence[Shaped]) -> str:
    """What must be kept and beaten, as paragraphs of the module's docstring."""
    interface = task.interface
    home = f"{interface.__module__}.{interface.__name__}"
    described = (inspect.getdoc(task.cost) or "").replace("\n", " ")
    paragraphs = [
        f"Reference to beat: {home} (its forward is the semantics), compiled, and what production ships: "
        f"`fastkernels bench FOLDER` times them all beside this file and takes the best. Work from here: "
        f"replace the body of forward; keep the class's name, the constructor, the signature and the state names.",
        f"Accuracy class {task.accuracy.name!r}: error against the reference in float64 at most "
        f"{task.accuracy.factor:g} times that of the reference in the dtype at hand, plus one rounding.",
        f"Mutates: {', '.join(task.mutates) if task.mutates else 'nothing; inputs must be left as they are'}.",
        f"State: {_state(task, cases)}.",
        f"Least work: {described}",
    ]
    if task.parts:
        paragraphs.append(
            f"The reference is built from {', '.join(task.parts)}: candidates for those are put inside this one, as "
            "long as it keeps the parts."
        )
    return "\n\n".join(textwrap.fill(p, WIDTH) for p in paragraphs)


def _state(task: Task, cases: Sequence[Shaped]) -> str:
    """Parameters and persistent buffers of the reference in the first case."""
    if not cases:
        return "none"
    with torch.device("meta"):
        state = task.interface(**cases[0].init).state_dict()
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()]
    more = f", and {len(shown) - MOST_SHAPES} more" if len(shown) > MOST_SHAPES else ""
    return ", ".join(shown[:MOST_SHAPES]) + more + f" (in {cases[0].name})" if shown else "none"


def _shapes(task: Task, cases: Sequence[Shaped], *, of: int, told: str, more: str) -> str:
    lines = [f"Shapes {told}:"]
    names = list(inspect.signature(task.interface.forward).parameters)[1:]
    for case in cases:
        work = f"; {case.cost.bytes:,} bytes, {case.cost.flops:,} FLOPs" if case.cost is not None else ""
        given = ", ".join(f"{name} {value}" for name, value in zip(names, case.arguments, strict=False))
        lines += textwrap.wrap(
            f"{case.name}: {given}{work}; built with ({facts_in_words(case.init)})",
            WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_long_words=False,
        )
    if of > len(cases):
        lines.append(f"    and {of - len(cases)} more: {more}")
    return "\n".join(lines) + "\n"


def _places(sites: Mapping[str, Sequence[str]]) -> str:
    if not sites:
        return ""
    lines = ["", "Sites in the architecture:"]
    for facts, paths in sites.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines += textwrap.wrap(
            f"{paths[0] or '(the model)'}{more}: ({facts})",
            WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_long_words=False,
        )
    return "\n".join(lines) + "\n"


def _docstring(task: Task) -> str:
    text = inspect.cleandoc(task.interface.__doc__ or task.name).replace("\\", "\\\\")
    return f'"""{text}\n"""' if "\n" in text else f'"""{text}"""'


def _written(method: Method) -> str:
    head = method.head
    if len(head) > WIDTH - 4:
        inside, _, tail = head.partition("(")[2].rpartition(")")
        arguments = _split(inside)
        head = f"{head.partition('(')[0]}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){tail}"
    body = method.passed_on if method.name == "__init__" else f"return {method.passed_on}"
    if len(body) > WIDTH - 8:
        inside = body.partition("super().")[2].partition("(")[2].rpartition(")")[0]
        body = body[: -len(inside) - 1] + "\n" + "".join(f"    {a},\n" for a in _split(inside)) + ")"
    doc = f'    """{method.doc}"""\n' if method.doc else ""
    return f"{head}\n{doc}{textwrap.indent(body, '    ')}\n"


def _split(arguments: str) -> list[str]:
    """Arguments apart, at the commas that are in no bracket.

    >>> _split("a: dict[str, int], *, b: int = max(1, 2)")
    ['a: dict[str, int]', '*', 'b: int = max(1, 2)']
    """
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def facts_in_words(facts: Mapping[str, Any]) -> str:
    """Constructor facts as keyword arguments, for a docstring."""
    return ", ".join(f"{name}={value!r}" for name, value in facts.items())


def order(cases: Iterable[Any]) -> list[Any]:
    """Production's cases first: those are what counts."""
    return sorted(cases, key=lambda case: not case.production)
