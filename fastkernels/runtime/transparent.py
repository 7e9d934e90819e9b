"""May an operator show its kernels to the compiler behind Dynamo? Tried by tracing a call as AOTAutograd will.

A call of an operator costs Python time at each run of a graph, 10 to 40 us with the candidate's own; a kernel that
Inductor sees it launches itself, as its own. Engines drop guards: what one trace decides must hold at every size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fastkernels.runtime.fake import Slot, holding, undispatched
from fastkernels.runtime.launch import launching_in_graph
from fastkernels.runtime.schema import tensors_in
from fastkernels.runtime.trace import batches, close, copies

KERNEL = "triton_kernel_wrapper"  # what torch calls the node of a Triton kernel in a graph


def hidden(forward: Callable[..., Any], example: tuple[Any, ...], *, slots: Sequence[Slot]) -> str | None:
    """Why ``forward`` must stay behind an operator; None where its trace launches Triton kernels, asks nothing of the
    number of rows, and computes at several sizes, one row among them, what ``forward`` does.

    Args:
        example: arguments of one call; leading dimensions that equal the first tensor's are the number of rows.
        slots: the parameters and buffers that ``forward`` reads, which become inputs.
    """
    sizes = batches(example)
    if len(sizes) == 1:
        return "its example has no rows"
    state = [slot.tensor for slot in slots]
    try:
        with torch.no_grad():
            graph, guards = _traced(forward, copies(example, sizes[-1]), slots)
            if not any(KERNEL in str(node.target) for node in graph.graph.nodes):
                return "its trace launches no Triton kernel"
            if guards:
                return f"its code asks for the number of rows: {guards[0]}"
            for size in (1, *sizes):
                call = copies(example, size)
                want = tensors_in(forward(*copies(example, size)))
                if not close(graph(*_tensors(call), *state), want):
                    return f"its trace computes something else than its code does, with {size or sizes[1] - 1} rows"
    except Exception as error:  # noqa: BLE001 # eager calls went well: whatever this is, tracing caused it
        return f"{type(error).__name__} while traced: {str(error).strip().partition(chr(10))[0]}"
    return None


def _traced(
    forward: Callable[..., Any], call: Sequence[Any], slots: Sequence[Slot]
) -> tuple[torch.fx.GraphModule, list[str]]:
    """The graph as a function of the call's tensors and the state, and what was asked of sizes that are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    tensors = _tensors(call)
    rows = len(tensors[0])

    def stand_in(t: torch.Tensor, *, given: bool) -> torch.Tensor:
        symbolic = [given and i == 0 and n == rows for i, n in enumerate(t.shape)]
        kinds = [DimDynamic.DUCK if s else DimDynamic.STATIC for s in symbolic]
        return mode.from_tensor(t.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rest, state = iter(given[: len(tensors)]), given[len(tensors) :]
        with holding(slots, state), launching_in_graph(), undispatched():
            return tensors_in(forward(*(next(rest) if isinstance(a, torch.Tensor) else a for a in call)))

    inputs = [stand_in(t, given=True) for t in tensors] + [stand_in(s.tensor, given=False) for s in slots]
    with mode:
        graph = make_fx(dispatch_functionalize(run, FunctionalTensorMode()))(*inputs)
    assert mode.shape_env is not None
    return graph, [str(guard.expr) for guard in mode.shape_env.guards]


def _tensors(call: Sequence[Any]) -> list[torch.Tensor]:
    return [a for a in call if isinstance(a, torch.Tensor)]
