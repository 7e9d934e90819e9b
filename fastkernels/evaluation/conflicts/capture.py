"""Captures a module with Dynamo, whole, and says in the catalogue's terms why that failed."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._guards import TracingContext
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fastkernels.evaluation.conflicts.observe import frame_of, is_user_file
from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.subject import tensors

Arguments = tuple[Any, ...]


class Uncapturable(Exception):
    """Dynamo cannot take the module as one graph: ``code`` and ``evidence`` say why."""

    def __init__(self, code: str, evidence: Evidence) -> None:
        super().__init__(f"{code}: {evidence.text.splitlines()[0] if evidence.text else ''}")
        self.code, self.evidence = code, evidence


@dataclass
class Captured:
    """Dynamo's graphs of one module, each with the guards on shapes that stand when it was taken."""

    graphs: list[torch.fx.GraphModule] = field(default_factory=list)
    guards: list[list[Any]] = field(default_factory=list)


def capture(module: Callable[..., Any], arguments: Arguments) -> Captured:
    """Traces the call with fullgraph and without running a compiler.

    Raises:
        Uncapturable: a graph break, an operator without a fake, or a value that only the data knows.
    """
    torch._dynamo.reset()
    captured = Captured()

    def grab(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        captured.graphs.append(graph)
        context = TracingContext.try_get()
        shapes = context.fake_mode.shape_env if context is not None and context.fake_mode is not None else None
        captured.guards.append(list(shapes.guards) if shapes is not None else [])
        return graph.forward

    with torch.no_grad():
        run_compiled(torch.compile(module, backend=grab, fullgraph=True), arguments)
    for graph in captured.graphs:
        node = next((n for n in graph.graph.nodes if _data_dependent(n)), None)
        if node is not None:
            text = f"{node.target} in the graph: what it returns depends on the data"
            raise Uncapturable("GB_DATA_DEP", _of_node(node, text))
    return captured


def run_compiled(function: Callable[..., Any], arguments: Arguments) -> Any:
    """Calls a compiled function; Dynamo's refusals become Uncapturable, with the candidate's line."""
    try:
        with _quiet():
            return function(*arguments)
    except torch._dynamo.exc.BackendCompilerFailed:
        raise
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.UserError) as error:
        raise Uncapturable(_code(error), frame_of(error)) from error
    except Exception as error:
        if not _raised_by_dynamo(error):
            raise
        raise Uncapturable("GB_UNTRACEABLE_CALL", frame_of(error)) from error


def _raised_by_dynamo(error: BaseException) -> bool:
    """Whether an error came while Dynamo read the code, not from a compiler behind it or from running the result."""
    names = [frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "InstructionTranslatorBase.run" in names and "OutputGraph.call_user_compiler" not in names


def compiled(module: nn.Module, backend: Any) -> Callable[..., Any]:
    """The module compiled whole; calling it raises Uncapturable where Dynamo refuses."""
    torch._dynamo.reset()
    function = torch.compile(module, backend=backend, fullgraph=True)
    return lambda *arguments: run_compiled(function, arguments)


def _data_dependent(node: torch.fx.Node) -> bool:
    value = node.meta.get("example_value")
    leaves = [value, *tensors(value)] if value is not None else []
    return any(
        bool(free_unbacked_symbols(v)) for v in leaves if isinstance(v, (torch.Tensor, torch.SymInt, torch.SymFloat))
    )


def _of_node(node: torch.fx.Node, text: str) -> Evidence:
    """The candidate's line in a graph node's recorded stack."""
    file = line = None
    for entry in (node.meta.get("stack_trace") or "").splitlines():
        words = entry.strip().split('"')
        if len(words) > 2 and words[0] == "File " and is_user_file(words[1]):
            file, line = words[1], int(words[2].split("line ")[1].split(",")[0])
    return Evidence(text=text, file=file, line=line, node=node.name)


# Dynamo's own names of the reasons. Those about values; everything else that it refuses is a call it cannot trace.
VALUES = ("data-dependent", "data dependent", "tensor.item", "tolist", "dynamic shape operator", "scalar tensor")


def _code(error: BaseException) -> str:
    kind = f"{getattr(error, 'gb_type', None) or ''} {error}".lower()
    first = (getattr(error, "gb_type", None) or str(error)).lower()
    if "logging" in first:
        return "GB_SIDE_EFFECT"
    if "fake impl" in kind or "does not support running with fake tensors" in first:
        return "FK_MISSING"
    if any(v in first for v in VALUES) or "could not guard on data-dependent" in kind:
        return "GB_DATA_DEP"
    if isinstance(error, torch._dynamo.exc.UserError) and "data-dependent" in kind:
        return "GB_DATA_DEP"
    return "GB_UNTRACEABLE_CALL"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the pages that torch logs about an error which is caught here."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
