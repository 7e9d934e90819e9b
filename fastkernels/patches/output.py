"""Does a candidate return what the original does: structure, shapes and dtypes."""

from __future__ import annotations

from typing import Any

import torch

from fastkernels.errors import CandidateError


def check_output(result: Any, like: Any, *, where: str, label: str, task: str) -> None:
    """Raises CandidateError unless ``result`` has the structure, shapes and dtypes of ``like``."""
    got, want = _flat(result), _flat(like)
    said, wanted = ", ".join(map(_describe, got)), ", ".join(map(_describe, want))
    if len(got) != len(want) or any(_describe(g) != _describe(w) for g, w in zip(got, want, strict=False)):
        dtypes = {str(t.dtype).removeprefix("torch.") for t in got if isinstance(t, torch.Tensor)}
        raise CandidateError(
            f"{where}: candidate {label} returns {said or type(result).__name__}, the task {task} says {wanted}. "
            f"Return what the interface does, or declare what it supports (dtypes={sorted(dtypes)})."
        )


def _flat(result: Any) -> list[Any]:
    if isinstance(result, (tuple, list)):
        return [t for r in result for t in _flat(r)]
    return [] if result is None else [result]


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
