"""How many CUDA graphs Inductor records meanwhile: one for each partition, each size, and each set of addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def recordings() -> Iterator[list[str]]:
    """A list that grows by a text for each recording (the process is the stage's own)."""
    from torch._inductor.cudagraph_trees import CUDAGraphTreeManager

    made: list[str] = []
    original = CUDAGraphTreeManager.record_function

    def recorded(self: Any, new_inputs: Any, function_id: Any) -> Any:
        made.append(str(function_id))
        return original(self, new_inputs, function_id)

    CUDAGraphTreeManager.record_function = recorded
    try:
        yield made
    finally:
        CUDAGraphTreeManager.record_function = original
