"""Language models: greedy decoding with a cache, judged by their logits on real text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families import metrics
from fastkernels.evaluation.e2e.families.decoding import Decoder, plausible, served
from fastkernels.evaluation.e2e.families.family import Distance, Family, Mode, Served, Session, Tensors
from fastkernels.evaluation.e2e.families.prompt_stream import PromptStream, padded
from fastkernels.evaluation.e2e.workload import Workload

PREFILL, STEPS = 64, 32  # tokens of a check sequence, by the way they are run
KEPT = 8  # places of the prefill that are judged: with the steps' 40 x vocabulary a sequence, 20 MB at 128k
ERRORS = 4.0
LARGEST_EXPONENT = 700.0  # of a float64
PAD = -1  # after a prompt that is shorter than the longest


class LLMSession(Session):
    """A causal language model. See ``Family.session`` for the arguments."""

    def __init__(
        self, model: nn.Module, *, mode: Mode, backend: str, seed: int, texts: tuple[str, ...], check_size: int
    ) -> None:
        self.decoder = Decoder(model, mode=mode, backend=backend)
        self._check_size = check_size
        self._prompts = PromptStream(
            texts=texts,
            folder=getattr(model, "name_or_path", "") or "",
            vocabulary=self.decoder.vocabulary,
            seed=seed,
        )
        self._noise: float | None = None

    def serve(self, workload: Workload) -> Served:
        prompts = self._prompts.draw(workload)
        batches = [prompts[at : at + workload.batch] for at in range(0, workload.requests, workload.batch)]
        try:
            done = [self.decoder.generate(torch.stack(batch), count=workload.output_tokens) for batch in batches]
        except EvaluationError as error:
            raise EvaluationError(f"{workload.name}: {error}") from None
        return served(workload, done, prompts=padded(prompts, PAD))

    def answer(self) -> Tensors:
        """``logits`` (check_size, 40, vocabulary) when forced, and ``targets`` (check_size, 40) that they predict."""
        text = self._tokens(PREFILL + STEPS + 1, self._check_size)
        logits = self.decoder.forced(text[:, :-1], prefill=PREFILL, kept=KEPT)
        return {"logits": logits, "targets": text[:, -logits.shape[1] :]}

    def noise(self) -> float:
        """Root mean square difference between this model's logits on the check text, cached and computed whole."""
        if self._noise is None:
            text = self._tokens(PREFILL + STEPS + 1, self._check_size)[:, :-1]
            cached = self.decoder.forced(text, prefill=PREFILL, kept=KEPT)
            whole = self.decoder.whole(text, kept=cached.shape[1]).cpu()
            self._noise = (cached - whole).double().square().mean().sqrt().item()
        return self._noise

    def _tokens(self, length: int, count: int) -> Tensor:
        """(count, length), the same in all arms."""
        return self._prompts.tokens(length, count)


class LLM(Family):
    """Causal language models."""

    names = ("LLM",)
    category = "LLM"
    unit = "tokens"

    def default_workloads(self) -> Mapping[str, Workload]:
        members = (
            Workload(name="LLM.single_request", batch=1, requests=1, input_tokens=(512,), output_tokens=128),
            # Lengths are taken in turn, batch by batch: three batches, so that each length is served.
            Workload(name="LLM.mixed", batch=8, requests=24, input_tokens=(128, 512, 1024), output_tokens=64),
            Workload(name="LLM.long_context", batch=1, requests=1, input_tokens=(8192,), output_tokens=32),
            Workload(name="LLM.fixed_batch", batch=64, requests=64, input_tokens=(512,), output_tokens=64),
            Workload(name="LLM.prefill", batch=1, requests=1, input_tokens=(2048,), output_tokens=1),
        )
        return {workload.name: workload for workload in members}

    def session(
        self, model: nn.Module, *, mode: Mode, backend: str, seed: int, texts: tuple[str, ...], check_size: int
    ) -> LLMSession:
        return LLMSession(model, mode=mode, backend=backend, seed=seed, texts=texts, check_size=check_size)

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        logits, wanted = outputs["logits"], oracle["logits"]
        return {
            "logit_kl": metrics.kl_divergence(logits, wanted),
            "logit_l2": metrics.relative_l2(logits, wanted),
            "argmax": metrics.disagreement(logits, wanted),
            "top5": metrics.top_k_overlap(logits, wanted, k=5),
            "perplexity": _perplexity(logits, wanted, oracle["targets"]),
        }

    def plausible(self, session: Session, workload: Workload, outputs: Tensors) -> tuple[float, Any]:
        if not isinstance(session, LLMSession):
            raise EvaluationError(f"{workload.name}: its timed tokens are scored by an LLM session, not {session!r}")
        prompts, tokens = served_texts(workload, outputs)
        return plausible(session.decoder, prompts, tokens, noise=session.noise())


def served_texts(workload: Workload, outputs: Tensors) -> tuple[list[Tensor], Tensor]:
    """Prompts, without their padding, and the tokens (requests, count) of timed outputs.

    Raises:
        EvaluationError: there are other than as many tokens as the workload asks for.
    """
    tokens, wanted = outputs["tokens"], (workload.requests, workload.output_tokens)
    if tokens.shape != wanted:
        raise EvaluationError(f"{workload.name}: served tokens of shape {tuple(tokens.shape)}, asked for {wanted}")
    return [row[row != PAD] for row in outputs["prompts"]], tokens


def _perplexity(logits: Tensor, oracle: Tensor, targets: Tensor) -> Distance:
    loss, wanted = (torch.stack(list(map(_loss, x, targets))) for x in (logits, oracle))
    return perplexity(loss, wanted)


def perplexity(loss: Tensor, oracle: Tensor) -> Distance:
    """The mean difference of negative log likelihoods and ``ERRORS`` times its standard error; shown as the perplexity.

    A mean of few tokens is 0 by luck, and a baseline that had such luck would fail every honest candidate: with the
    errors, two draws of no true difference are within the slack of the calibration.
    """
    gap = loss - oracle
    error = ERRORS * gap.std().item() / math.sqrt(gap.numel())
    return Distance(value=abs(gap.mean().item()) + error, shown=math.exp(min(loss.mean().item(), LARGEST_EXPONENT)))


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of each target, one sequence at a time for its memory."""
    return -logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1))
