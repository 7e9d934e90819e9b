"""Dynamo's graph of one call and AOTAutograd's, as Inductor would be given it; nothing is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
import torch._dynamo
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext

from fastkernels.evaluation.conflicts.capture import Uncapturable, run_compiled
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.skip import Skip


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """Both graphs of one call, without gradients, and the Python code that was traced for them."""

    dynamo: fx.GraphModule
    aot: fx.GraphModule
    traced: frozenset[CodeType]


def lower(module: Callable[..., Any], arguments: tuple[Any, ...]) -> Lowered:
    """Traces the call whole, and runs it once.

    Raises:
        Skip: there is no such graph; the stages before say why.
    """
    torch._dynamo.reset()
    found: list[tuple[fx.GraphModule, frozenset[CodeType]]] = []
    functional: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        functional.append(graph)
        return graph.forward

    backend = aot_autograd(fw_compiler=keep)

    def recorded(graph: fx.GraphModule, inputs: Any) -> Any:
        found.append((graph, frozenset(TracingContext.get_traced_code() or ())))
        return backend(graph, inputs)

    try:
        with torch.no_grad():
            run_compiled(torch.compile(module, backend=recorded, fullgraph=True), arguments)
    except Uncapturable as error:
        raise Skip(f"not captured: {error}") from error
    except Exception as error:
        raise Skip(f"does not compile: {frame_of(error).text.splitlines()[0]}") from error
    if not found or not functional:
        raise Skip("nothing is left to compile: an empty graph")
    (graph, traced), aot = found[0], functional[0]
    return Lowered(dynamo=graph, aot=aot, traced=traced)
