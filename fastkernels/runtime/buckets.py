"""Declared batch sizes and sequence lengths: one graph for all of them, from the first call on.

Dynamo takes sizes as constants until it meets a second one, which costs a compilation. A backend is asked only after
tracing; it marks the dimensions then and has Dynamo trace again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.decorators import maybe_mark_dynamic
from torch._dynamo.exc import TensorifyScalarRestartAnalysis

# What maybe_mark_dynamic leaves on a tensor: the dimensions, and, since torch 2.12, that there are any.
DIMENSIONS, ANY = "_dynamo_weak_dynamic_indices", "_has_dynamo_dim_marking"


class Buckets:
    """Marks the dimensions of graph inputs that have a declared size: the first for batches, the second for sequences.

    A size of 1 stays a graph of its own: models compare with 1 (transformers' masks), and so do torch's own fakes
    (``conv``, ``view``), also under ``backed_size_oblivious``; with ``mark_unbacked`` the same places are errors.
    Parameters, buffers and tensors at static addresses are never marked; a dimension that the model's code needs as a
    number stays one.
    """

    def __init__(self) -> None:
        self._marked: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def apply(
        self,
        graph: fx.GraphModule,
        inputs: Sequence[Any],
        *,
        batch_sizes: Collection[int],
        sequence_lengths: Collection[int],
    ) -> None:
        """Returns if there is nothing (more) to mark.

        Raises:
            TensorifyScalarRestartAnalysis: dimensions were marked. The one exception by which a backend tells Dynamo
                to trace the frame again; not an error.
        """
        already = [tensor for tensor, _ in self._marked]
        self._unmark()
        if already:
            return
        for dim, sizes in ((0, batch_sizes), (1, sequence_lengths)):
            for node, value in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=False):
                if _is_sized(node, value, dim, sizes):
                    self._marked.append((value, _marks_of(value)))
                    maybe_mark_dynamic(value, dim)
        if self._marked:
            raise TensorifyScalarRestartAnalysis(restart_reason="declared sizes are dynamic")

    def _unmark(self) -> None:
        """The tensors as their owner gave them: a mark left behind would be guarded on elsewhere."""
        for tensor, former in reversed(self._marked):
            for name in (DIMENSIONS, ANY):
                tensor.__dict__.pop(name, None)
            tensor.__dict__.update(former)
        self._marked.clear()


def _marks_of(tensor: torch.Tensor) -> dict[str, Any]:
    found = {name: tensor.__dict__[name] for name in (DIMENSIONS, ANY) if name in tensor.__dict__}
    return found | ({DIMENSIONS: set(found[DIMENSIONS])} if DIMENSIONS in found else {})


def _is_sized(node: fx.Node, value: Any, dim: int, sizes: Collection[int]) -> bool:
    if not isinstance(value, torch.Tensor) or isinstance(value, nn.Parameter) or value.dim() <= dim:
        return False
    source = getattr(node, "_dynamo_source", None)
    if source is not None and source.guard_source.is_unspecialized_nn_module():
        return False
    size = value.shape[dim]
    return (
        isinstance(size, int)
        and size > 1
        and size in sizes
        and not hasattr(value, "_dynamo_static_input_type")
        and dim not in getattr(value, "_dynamo_static_indices", ())
    )
