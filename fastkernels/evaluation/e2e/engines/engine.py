"""What a serving engine is to an arm: it serves requests, scores texts, and asks its workers."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastkernels.errors import EvaluationError

if TYPE_CHECKING:
    from fastkernels.evaluation.e2e.engines.fit import Fit
    from fastkernels.evaluation.e2e.families.family import Mode
    from fastkernels.evaluation.e2e.scenario import Entry

PLUGINS = {"vllm": "vllm.general_plugins", "sglang": "sglang.srt.plugins"}
clock = time.perf_counter  # taken here, before any candidate is imported


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, the number of tokens to generate greedily, and when it comes: seconds after the start of a call."""

    prompt: list[int]
    count: int
    at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Response:
    """Tokens, and when each was there: seconds after the start of the call."""

    tokens: list[int]
    times: list[float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log probabilities at places of one sequence.

    ``ids``, ``logprobs``: (places, k), greatest first; ``target``: (places,), of the token asked for; ``rank``:
    (places,), 1 where no token is more likely.
    """

    ids: Tensor
    logprobs: Tensor
    target: Tensor
    rank: Tensor


class Engine(ABC):
    """One started engine. Greedy, one sequence a request, no stop at an end-of-sequence token, no prefix cache."""

    can_force: bool  # whether ``score_steps`` is there

    @abstractmethod
    def serve(self, requests: Sequence[Request]) -> list[Response]:
        """Serves the requests, each from its ``at`` on, all that are there at once."""

    @abstractmethod
    def score(self, texts: Sequence[Sequence[int]], k: int) -> list[Scores]:
        """By prefill: at each place but the last of a text, the ``k`` likeliest next tokens, and the one that is next.

        Places of a text of n tokens: n - 1.
        """

    def score_steps(self, texts: Sequence[Sequence[int]], k: int) -> list[Scores]:
        """By one decode step: a prefill of all but a text's last token, then a step on that; one place a text. The
        target is that token, once more."""
        raise EvaluationError(f"{type(self).__name__}: this engine decodes no given tokens.")

    @abstractmethod
    def call(self, verb: str, *arguments: str) -> list[str]:
        """What each rank answers to a verb of ``fastkernels.serving.standing``."""

    @abstractmethod
    def close(self) -> None:
        """Ends it, and frees its memory."""


def start(entry: Entry, *, model: str, mode: Mode, device: str, fit: Fit) -> Engine:
    """Starts the entry's engine.

    Args:
        model: folder, or hub id.
        device: ``cpu`` or ``cuda``.

    Raises:
        EvaluationError: it is not installed, or our plugin is not. An engine that does not start raises its own errors.
    """
    if not any(point.value.startswith("fastkernels.") for point in entry_points(group=PLUGINS[entry.engine])):
        raise EvaluationError(
            f"engine {entry.engine}: no entry point of fastkernels in {PLUGINS[entry.engine]}: it would run unpatched. "
            f"Install fastkernels in this environment ({sys.prefix})."
        )
    try:
        if entry.engine == "vllm":
            from fastkernels.evaluation.e2e.engines.vllm import Vllm

            return Vllm(entry, model=model, mode=mode, fit=fit)
        from fastkernels.evaluation.e2e.engines.sglang import Sglang

        return Sglang(entry, model=model, mode=mode, device=device, fit=fit)
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"engine {entry.engine}: {error}. Evaluate with the Python of an environment that has {entry.engine}."
        ) from error


def scores_of(places: Sequence[Sequence[tuple[int, float]]], targets: Sequence[tuple[float, int]], k: int) -> Scores:
    """Of pairs (token, log probability) and (log probability, rank) as engines give them.

    >>> scores_of([[(7, -2.0), (3, -0.5), (1, -1.0)]], [(-2.0, 9)], 2).ids
    tensor([[3, 1]])
    """
    best = [sorted(dict(place).items(), key=lambda pair: -pair[1])[:k] for place in places]
    return Scores(
        ids=torch.tensor([[token for token, _ in place] for place in best], dtype=torch.int64),
        logprobs=torch.tensor([[value for _, value in place] for place in best], dtype=torch.float64),
        target=torch.tensor([value for value, _ in targets], dtype=torch.float64),
        rank=torch.tensor([rank for _, rank in targets], dtype=torch.int64),
    )
