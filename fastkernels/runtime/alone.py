"""How many kernels the reference of an operator is by itself: what it would be in a graph, had it no neighbours.

The difference to what the graph has with the reference in it is what fuses across the operator's edges."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fastkernels.runtime.backend import build
from fastkernels.runtime.injected import calls_in, name_of, registered
from fastkernels.runtime.options import Options


def kernels_alone(graph: fx.GraphModule, options: Options) -> dict[str, int]:
    """Kernels that Inductor generates for the reference of each operator in ``graph``, by the operator's name.

    Compiles the reference on the arguments of the operator's first call, sizes being what they are in this call; no
    memory is taken and nothing runs.
    """
    first: dict[str, fx.Node] = {}
    for node, op in calls_in(graph):
        first.setdefault(name_of(op), node)
    known = {injected.name: injected.decomposition for injected in registered().values()}
    # Nothing will run: no CUDA graphs, and no word on why there are none.
    quiet = replace(options, exclude=(), inductor={**options.inductor, "triton.cudagraphs": False})
    made: dict[str, int] = {}
    with _disable_current_modes(), torch.no_grad():
        for name, node in first.items():
            mode = FakeTensorMode()
            alone, inputs = _graph_of(node, known[name], mode)
            with tracing(TracingContext(mode)):
                _, compiled = build(alone, inputs, quiet, out={})
            if compiled.kernels is not None:
                made[name] = compiled.kernels
    return made


def _graph_of(node: fx.Node, function: Any, mode: FakeTensorMode) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """A graph that calls ``function`` with tensors like those that ``node`` has, and those tensors."""
    graph, inputs = fx.Graph(), list[torch.Tensor]()
    placeholders: dict[fx.Node, Any] = {}

    def argument(of: fx.Node) -> Any:
        if of not in placeholders:
            value = of.meta["example_value"]
            if isinstance(value, torch.Tensor):
                with mode:
                    like = torch.empty_strided(
                        _hints(value.shape), _hints(value.stride()), dtype=value.dtype, device=value.device
                    )
                inputs.append(like)
                placeholders[of] = graph.placeholder(f"argument_{len(inputs)}")
            else:
                placeholders[of] = _hint(value)
        return placeholders[of]

    args, kwargs = (fx.map_arg(a, argument) for a in (node.args, node.kwargs))
    result = graph.call_function(function, args, kwargs)
    returned = node.meta["example_value"]
    if isinstance(returned, (tuple, list)):
        outputs = tuple(graph.call_function(operator.getitem, (result, i)) for i in range(len(returned)))
    else:
        outputs = () if returned is None else (result,)
    graph.output(outputs)
    return fx.GraphModule({}, graph), inputs


def _hints(sizes: Any) -> list[int]:
    return [_hint(size) for size in sizes]


def _hint(value: Any) -> Any:
    return value.node.hint if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value
