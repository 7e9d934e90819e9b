"""An engine at work on the workloads of a scenario: what is timed, and what it answers to the check texts."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.engine import Engine, Request, Response, Scores
from fastkernels.evaluation.e2e.engines.texts import LENGTH, PLACES, STEPS, TOP
from fastkernels.evaluation.e2e.families.family import Served, Session, Tensors
from fastkernels.evaluation.e2e.families.llm import PAD
from fastkernels.evaluation.e2e.families.prompt_stream import PromptStream, padded
from fastkernels.evaluation.e2e.workload import Workload


class EngineSession(Session):
    """One engine and the prompts of one entry."""

    def __init__(self, engine: Engine, *, prompts: PromptStream, vocabulary: int, seed: int, check_size: int) -> None:
        self.engine = engine
        self._prompts, self._seed, self._check_size = prompts, seed, check_size
        self._top = min(TOP, vocabulary)
        self._passes: Counter[str] = Counter()
        self.noise = 0.0  # how far this engine, unpatched, is from the oracle

    def serve(self, workload: Workload) -> Served:
        """Batches one after the other, each with all its requests at once; where the workload has a ``rate``, requests
        as a Poisson process brings them, and latencies from then on."""
        prompts = self._prompts.draw(workload)
        ats = self._arrivals(workload)
        requests = [
            Request(prompt=prompt.tolist(), count=workload.output_tokens, at=at)
            for prompt, at in zip(prompts, ats, strict=True)
        ]
        size = workload.requests if workload.rate else workload.batch
        batches = [requests[at : at + size] for at in range(0, len(requests), size)]
        done = [self.engine.serve(batch) for batch in batches]
        self._check(workload, [response for responses in done for response in responses])
        ends = [max(r.times[-1] for r in responses) * 1e3 for responses in done]
        pairs = [(r, q) for rs, qs in zip(done, batches, strict=True) for r, q in zip(rs, qs, strict=True)]
        tokens = torch.tensor([r.tokens for r, _ in pairs], dtype=torch.int64)
        latencies = tuple((r.times[-1] - q.at) * 1e3 for r, q in pairs)
        return Served(
            requests=workload.requests,
            tokens=tokens.numel(),
            steps=len(batches) * workload.output_tokens,
            latency_ms=latencies if workload.rate else tuple(ends),
            ttft_ms=tuple((r.times[0] - q.at) * 1e3 for r, q in pairs),
            tpot_ms=tuple((r.times[-1] - r.times[0]) / (len(r.times) - 1) * 1e3 for r, _ in pairs if len(r.times) > 1),
            elapsed_ms=sum(ends) if workload.rate else None,
            outputs={"tokens": tokens, "prompts": padded(prompts, PAD)},
        )

    def answer(self) -> Tensors:
        """Log probabilities on the check texts: ``prompt_*`` by prefill, and ``step_*`` by single decode steps, where
        the engine decodes given tokens. Of each the likeliest ``top_ids`` with ``top_logprobs`` (texts, places, 20),
        and ``targets`` with ``target_logprobs`` (texts, places)."""
        texts = self._prompts.tokens(LENGTH, self._check_size)
        found = self.engine.score(texts.tolist(), self._top)
        answer = _part("prompt", found, list(PLACES), texts[:, [p + 1 for p in PLACES]])
        if self.engine.can_force:
            begun = [text[: p + 1].tolist() for text in texts for p in STEPS]
            steps = self.engine.score_steps(begun, self._top)
            each = [_joined(steps[at : at + len(STEPS)]) for at in range(0, len(steps), len(STEPS))]
            answer |= _part("step", each, list(range(len(STEPS))), texts[:, list(STEPS)])
        return answer

    def scores(self, texts: Sequence[Tensor]) -> list[Scores]:
        """Ranks and log probabilities of each next token of whole texts, by prefill."""
        return self.engine.score([text.tolist() for text in texts], 1)

    def _arrivals(self, workload: Workload) -> list[float]:
        """Seconds after the start of a pass, the same in every arm; others in every pass."""
        if not workload.rate:
            return workload.requests * [0.0]
        at_pass = self._passes[workload.name]
        self._passes[workload.name] += 1
        rng = random.Random(f"{self._seed} {workload.name} {at_pass}")
        return list(itertools.accumulate(rng.expovariate(workload.rate) for _ in range(workload.requests)))

    def _check(self, workload: Workload, responses: Sequence[Response]) -> None:
        for number, response in enumerate(responses):
            if len(response.tokens) != workload.output_tokens:
                raise EvaluationError(
                    f"{workload.name}: the engine emitted {len(response.tokens)} of {workload.output_tokens} tokens "
                    f"for request {number + 1} of {len(responses)}"
                )


def _part(name: str, scores: Sequence[Scores], places: list[int], targets: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}_top_ids": torch.stack([s.ids[places] for s in scores]),
        f"{name}_top_logprobs": torch.stack([s.logprobs[places] for s in scores]),
        f"{name}_target_logprobs": torch.stack([s.target[places] for s in scores]),
        f"{name}_targets": targets.clone(),
    }


def _joined(scores: Sequence[Scores]) -> Scores:
    return Scores(
        ids=torch.cat([s.ids for s in scores]),
        logprobs=torch.cat([s.logprobs for s in scores]),
        target=torch.cat([s.target for s in scores]),
        rank=torch.cat([s.rank for s in scores]),
    )
