"""Can Dynamo take a candidate's code into a graph? Tried on an example, at several batch sizes, on fresh buffers.

A clean graph alone is not enough: Python state that changes with each call compiles without end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import get_compilation_metrics, graph_break_reasons

from fastkernels.runtime.own_code import with_own_code
from fastkernels.runtime.schema import tensors_in

# One graph for the first size, one for all others; a third is a branch on the size, more is a graph for each.
MOST_GRAPHS = 3
RELATIVE_TOLERANCE = 2e-2  # the same operators in another order, in half precision; wrong results are far beyond


def untraceable(forward: Callable[..., Any], example: tuple[Any, ...], *, implementation: nn.Module) -> str | None:
    """Why ``forward`` may not be traced into a graph, with the line of the candidate at fault; None where it may.

    Runs ``forward`` on copies of ``example``: twice each at its own batch size and at others, eagerly and compiled.
    """
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(with_own_code(forward), fullgraph=True, backend=backend)
    reasons_before = len(graph_break_reasons)
    try:
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=False):  # sizes are to be retraced here
            for batch in batches(example):
                for repeat in range(2):
                    want, before = _eager(forward, example, batch), graphs
                    if want is None:  # the candidate does not take this size at all
                        break
                    got = compiled(*copies(example, batch))
                    if repeat and graphs > before:
                        return f"it recompiles at every call: {_guard()}"
                    if not close(got, want):
                        return "its traced graph computes something else than its code does"
    except TorchDynamoException as error:
        return _told(error, implementation)
    except Exception as error:  # noqa: BLE001 # the eager call went well: whatever this is, tracing caused it
        return f"{type(error).__name__} while traced: {_first_line(str(error))}"
    finally:
        del graph_break_reasons[reasons_before:]
    return f"it needs {graphs} graphs for {len(batches(example))} batch sizes" if graphs > MOST_GRAPHS else None


def _eager(forward: Callable[..., Any], example: tuple[Any, ...], batch: int | None) -> tuple[torch.Tensor, ...] | None:
    try:
        return tensors_in(forward(*copies(example, batch)))
    except Exception:
        if batch is None:
            raise
        return None


def batches(example: tuple[Any, ...]) -> list[int | None]:
    """Batch sizes to try, the example's own (None) first."""
    first = next((a for a in example if isinstance(a, torch.Tensor) and a.dim()), None)
    if first is None or not len(first):
        return [None]
    size = len(first)
    return [None, size + 1, 2 * size + 3, 3 * size + 4]


def copies(example: tuple[Any, ...], batch: int | None) -> list[Any]:
    """Copies of the arguments; where ``batch`` is given, those that share the first's leading size have that many."""
    first = next((a for a in example if isinstance(a, torch.Tensor) and a.dim()), None)
    made: list[Any] = []
    for a in example:
        if not isinstance(a, torch.Tensor):
            made.append(a)
        elif batch is None or first is None or not a.dim() or len(a) != len(first):
            made.append(a.detach().clone())
        else:
            made.append(a.detach()[torch.arange(batch, device=a.device) % len(a)])
    return made


def close(got: Any, want: tuple[torch.Tensor, ...]) -> bool:
    tensors = tensors_in(got)
    return len(tensors) == len(want) and all(
        g.shape == w.shape
        and g.dtype == w.dtype
        and torch.allclose(g.double(), w.double(), RELATIVE_TOLERANCE, RELATIVE_TOLERANCE, equal_nan=True)
        for g, w in zip(tensors, want, strict=True)
    )


def _told(error: TorchDynamoException, implementation: nn.Module) -> str:
    """Torch's short text with the candidate's line: of its own file where that is on the stack."""
    frames = list(getattr(error, "real_stack", None) or [])
    own = _file(type(implementation))
    ours = [f for f in frames if f.filename == own] or [f for f in frames if "torch/" not in f.filename] or frames
    at = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else ""
    return f"{_first_line(str(error))}{at}"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explained = next((line for line in lines if line.startswith("Explanation:")), "")
    return " ".join([lines[0] if lines else "", explained]).strip()


def _guard() -> str:
    metrics = get_compilation_metrics()
    reason = metrics[-1].recompile_reason if metrics else None
    return " ".join((reason or "a guard on Python state fails").splitlines()[0].split())


def _file(cls: type) -> str | None:
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):
        return None
