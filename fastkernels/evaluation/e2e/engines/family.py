"""Language models in engines: judged by the log probabilities that engines give, against an oracle in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.distances import distances_of, noise_of
from fastkernels.evaluation.e2e.engines.session import EngineSession
from fastkernels.evaluation.e2e.engines.texts import LENGTH, PLACES, STEPS, TOP
from fastkernels.evaluation.e2e.families.decoding import NOISE, standing_share
from fastkernels.evaluation.e2e.families.family import Distance, Mode, Session, Tensors
from fastkernels.evaluation.e2e.families.llm import LLM, LLMSession, served_texts
from fastkernels.evaluation.e2e.workload import Workload

FORCING = ("vllm",)  # engines that decode given tokens, and tell what they would have chosen


class ReferenceSession(LLMSession):
    """A model in transformers that answers as an engine does: with its likeliest tokens."""

    def answer(self) -> Tensors:
        """As ``EngineSession.answer``; each text in one call without a cache."""
        texts = self._tokens(LENGTH, self._check_size)
        k = min(TOP, self.decoder.vocabulary)
        prompt, step = [], []
        for text in texts:
            logits = self.decoder.whole(text[None, :-1], kept=LENGTH - 1)[0].double().log_softmax(-1).cpu()
            prompt.append(_top(logits[list(PLACES)], text[[p + 1 for p in PLACES]], k))
            step.append(_top(logits[list(STEPS)], text[list(STEPS)], k))
        return _stacked("prompt", prompt) | _stacked("step", step)


class EngineLLM(LLM):
    """Causal language models, served by an engine. Not among the registry's families: an entry's engine chooses it."""

    names = ()

    def __init__(self, engine: str = "vllm") -> None:
        self.parts = ("prompt", "step") if engine in FORCING else ("prompt",)

    def default_workloads(self) -> Mapping[str, Workload]:
        arrivals = Workload(
            name="LLM.arrivals", batch=64, requests=64, input_tokens=(512,), output_tokens=64, rate=16.0
        )
        return {**super().default_workloads(), arrivals.name: arrivals}

    def session(
        self, model: nn.Module, *, mode: Mode, backend: str, seed: int, texts: tuple[str, ...], check_size: int
    ) -> LLMSession:
        return ReferenceSession(model, mode=mode, backend=backend, seed=seed, texts=texts, check_size=check_size)

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        return {name: d for part in self.parts for name, d in distances_of(part, outputs, oracle).items()}

    def noise(self, outputs: Tensors, oracle: Tensors) -> float | None:
        return noise_of(self.parts, outputs, oracle)

    def plausible(self, session: Session, workload: Workload, outputs: Tensors) -> tuple[float, Any]:
        """Share of timed tokens that are the unpatched engine's likeliest, or no further below that in log probability
        than ``NOISE`` times what this engine itself is from the oracle.

        Second and third choices are not plausible by their rank: where steps are replayed from a graph, these tokens
        are most of what is known of them.
        """
        if not isinstance(session, EngineSession):
            raise EvaluationError(f"{workload.name}: its timed tokens are scored by an engine, not {session!r}")
        prompts, tokens = served_texts(workload, outputs)
        noise = session.noise
        scores = session.scores([*map(torch.cat, zip(prompts, tokens, strict=True))])
        kept = [slice(len(prompt) - 1, None) for prompt in prompts]
        rank = torch.stack([s.rank[at] for s, at in zip(scores, kept, strict=True)])
        below = torch.stack([s.logprobs[at, 0] - s.target[at] for s, at in zip(scores, kept, strict=True)])
        near = below <= NOISE * noise
        share, struck = standing_share((rank == 1) | near)
        told = {"tokens": rank.numel(), "top": int((rank == 1).sum()), "near": int((near & (rank > 1)).sum())}
        return share, told | {"noise": noise, "struck": struck}


def _top(logprobs: Tensor, targets: Tensor, k: int) -> dict[str, Tensor]:
    best = logprobs.topk(k, dim=-1)
    own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return {"top_ids": best.indices, "top_logprobs": best.values, "target_logprobs": own, "targets": targets}


def _stacked(part: str, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}_{name}": torch.stack([row[name] for row in rows]) for name in rows[0]}
