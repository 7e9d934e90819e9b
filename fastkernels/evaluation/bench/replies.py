"""What the parent makes of a child's replies: copies of its own, and words that can only count against the child."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.outputs import decode
from fastkernels.evaluation.bench.shared import Arena, Place

HACKS = frozenset({"TAMPERED", "FORGED"})  # counted in whatever mode they are seen
BRIEF_CHARACTERS = 160
NO_ROOM = ("out of memory", "can't allocate memory", "Cannot allocate memory", "MemoryError")  # torch's words for it


class RunnerFailed(EvaluationError):
    """A child did not do what it was told: ``code`` is the catalogue's, ``detail`` what was seen."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

    @property
    def brief(self) -> str:
        """The first line of ``detail``, for a note."""
        return self.detail.partition("\n")[0][:BRIEF_CHARACTERS]


def starved(error: RunnerFailed) -> bool:
    """Whether it failed for want of memory, which another may hold."""
    return any(words in error.detail for words in NO_ROOM)


@dataclass(frozen=True, kw_only=True)
class Called:
    """One call as the parent has it: the outputs are its own copies, ``facts`` the child's words about each."""

    outputs: Any
    facts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One timed batch: ``wall`` seconds by the parent's clock, ``cpu`` those of all the child's threads on a processor,
    ``events`` those of its CUDA events."""

    calls: int
    wall: float
    cpu: float
    events: float | None

    def beyond(self, empty: float) -> float:
        """Seconds beyond those of a batch without calls; a tenth at least, for that one may have been held up."""
        return max(self.wall - empty, self.wall / 10)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a call ran: the implementation's ``own`` kernels out of those that it ``brings``, and all ``kernels``."""

    own: tuple[str, ...]
    brings: tuple[str, ...]
    kernels: tuple[str, ...]
    kernel_seconds: float | None
    delegates: bool


def called(told: Mapping[str, Any], outputs: Sequence[Place], arena: Arena) -> Called:
    """Copies of the outputs that a child says it handed over to their places in the ``arena``.

    Raises:
        ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError: what it says describes none.
    """
    plausible(told, outputs)
    tensors = [
        arena.view(outputs[i]).clone() if copied else absent(fact)
        for i, (fact, copied) in enumerate(zip(told["tensors"], told["copied"], strict=True))
    ]
    return Called(outputs=decode(told["tree"], tensors), facts=tuple(told["tensors"]))


def plausible(told: Mapping[str, Any], outputs: Sequence[Place]) -> None:
    """Raises ValueError where an output is said to be in shared memory that does not fit there."""
    for i, (fact, copied) in enumerate(zip(told["tensors"], told["copied"], strict=True)):
        if copied and (i >= len(outputs) or tuple(fact["shape"]) != outputs[i].shape):
            raise ValueError(f"output {i} does not fit where it is said to be")


def absent(fact: Mapping[str, Any]) -> torch.Tensor:
    """Stands for an output that does not fit the reference's: its shape and dtype without any contents.

    Raises:
        ValueError: no shape or dtype.
    """
    dtype = getattr(torch, str(fact["dtype"]), None)
    if not isinstance(dtype, torch.dtype) or len(fact["shape"]) > 64:
        raise ValueError(f"an output of dtype {fact['dtype']}")
    return torch.empty([int(size) for size in fact["shape"]], dtype=dtype, device="meta")
