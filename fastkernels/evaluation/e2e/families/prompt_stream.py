"""The prompts of a language model's passes: the same in every arm, other tokens in every pass."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.prompts import tokenise
from fastkernels.evaluation.e2e.workload import Workload

GOLDEN = 0.618


class PromptStream:
    """Token ids for one model.

    Args:
        texts: prompts; none means random ids.
        folder: the model's, with its tokenizer; without one ids are random.
        vocabulary: number of ids.
        seed: the same in all arms.
    """

    def __init__(self, *, texts: tuple[str, ...], folder: str | Path, vocabulary: int, seed: int) -> None:
        self._texts, self._vocabulary, self._seed = texts, vocabulary, seed
        self._folder = Path(folder) if folder and (Path(folder) / "tokenizer.json").is_file() else None
        self._known: dict[tuple[int, int], Tensor] = {}
        self._passes: Counter[str] = Counter()

    def tokens(self, length: int, count: int) -> Tensor:
        """(count, length) int64, the same at every call."""
        if (length, count) not in self._known:
            self._known[length, count] = tokenise(
                self._texts, self._folder, self._vocabulary, length, count, self._seed + length
            )
        return self._known[length, count]

    def draw(self, workload: Workload) -> list[Tensor]:
        """One prompt a request. They are other tokens in each pass, so that no answer can be kept from an earlier one.

        A pass turns each prompt by another part of its length: as much text as before but for one seam, and nothing to
        tokenise; what followed the old end says nothing of what follows the new one.

        Raises:
            EvaluationError: the workload has no prompts, or asks for no tokens.
        """
        if not workload.input_tokens or not workload.output_tokens:
            raise EvaluationError(f"{workload.name}: give it input_tokens, and at least 1 of output_tokens")
        at_pass = self._passes[workload.name]
        self._passes[workload.name] += 1
        prompts = []
        for request in range(workload.requests):
            length = workload.input_tokens[request // workload.batch % len(workload.input_tokens)]
            prompts.append(self.tokens(length, workload.requests)[request].roll(at_pass * (int(GOLDEN * length) | 1)))
        return prompts


def padded(prompts: list[Tensor], value: int) -> Tensor:
    """Prompts of several lengths as one tensor, ``value`` after their ends."""
    return torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=value)
