"""What an operator promises of its results: memory of their own, and in words what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastkernels.runtime.schema import Layout, layout_of

share = torch._C._is_alias_of  # type: ignore[attr-defined] # torch's stubs leave it out


def apart(results: Sequence[torch.Tensor], given: list[torch.Tensor]) -> bool:
    """Whether each result is contiguous and in memory of its own; adds them to ``given``."""
    for tensor in results:
        for other in given:
            if share(tensor, other):
                return False
        if not tensor.is_contiguous():
            return False
        given.append(tensor)
    return True


def names(dtypes: Any) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def described(result: Any) -> str:
    layout = layout_of(result)
    return type(result).__name__ if layout is None else described_layout(layout)


def described_layout(layout: Layout) -> str:
    if isinstance(layout, str):
        return {"tensor": "a tensor", "none": "nothing"}[layout]
    return f"({', '.join('tensor' if present else 'None' for present in layout)})"
