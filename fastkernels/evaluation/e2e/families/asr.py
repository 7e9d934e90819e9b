"""Speech recognition by encoder-decoder models as Whisper, judged by their logits and their greedy transcripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families import metrics
from fastkernels.evaluation.e2e.families.decoding import Decoder, plausible, served
from fastkernels.evaluation.e2e.families.family import Distance, Family, Mode, Served, Session, Tensors
from fastkernels.evaluation.e2e.workload import Workload

PREFIX = 4  # tokens that ask for a transcript: start, language, task, no timestamps
STEPS = 24  # forced ones after it, and tokens of a check transcript
SMOOTH = 8  # frames over which the drawn features change


class ASRSession(Session):
    """A model that takes log-mel features (batch, mel bins, frames). See ``Family.session`` for the arguments.

    No speech comes with the package, so features are drawn: noise smooth in time, clipped as a feature extractor clips.
    ``texts`` is not used.
    """

    def __init__(self, model: nn.Module, *, mode: Mode, backend: str, seed: int, check_size: int) -> None:
        self.decoder = Decoder(model, mode=mode, backend=backend, ids="decoder_input_ids")
        self._seed, self._check_size = seed, check_size
        self._passes: Counter[str] = Counter()
        self._noise: float | None = None

    def serve(self, workload: Workload) -> Served:
        at_pass = self._passes[workload.name]
        self._passes[workload.name] += 1
        features = self.features(workload, at_pass).split(workload.batch)
        try:
            done = [
                self.decoder.generate(self.prefix(len(x)), count=workload.output_tokens, input_features=x)
                for x in features
            ]
        except EvaluationError as error:
            raise EvaluationError(f"{workload.name}: {error}") from None
        return served(workload, done, **{"pass": torch.tensor(at_pass)})

    def answer(self) -> Tensors:
        """``logits`` (check_size, PREFIX + STEPS, vocabulary) when forced, and a ``transcript`` (check_size, STEPS)."""
        features = self._draw(self._check_size, self._seed)
        logits = self.decoder.forced(self._given(), prefill=PREFIX, kept=PREFIX, input_features=features)
        greedy = self.decoder.generate(self.prefix(len(features)), count=STEPS, input_features=features)
        return {"logits": logits, "transcript": greedy.tokens}

    def noise(self) -> float:
        """Root mean square difference between this model's logits on the check inputs, cached and computed whole."""
        if self._noise is None:
            features, ids = self._draw(self._check_size, self._seed), self._given()
            cached = self.decoder.forced(ids, prefill=PREFIX, kept=PREFIX, input_features=features)
            whole = self.decoder.whole(ids, kept=cached.shape[1], input_features=features).cpu()
            self._noise = (cached - whole).double().square().mean().sqrt().item()
        return self._noise

    def features(self, workload: Workload, at_pass: int) -> Tensor:
        """(requests, mel bins, frames): other ones in each pass, so that no answer can be kept from an earlier one."""
        frames = self._frames
        if not workload.output_tokens:
            raise EvaluationError(f"{workload.name}: give it at least 1 of output_tokens")
        if workload.size not in ((), (frames,)):
            raise EvaluationError(
                f"{workload.name}: size {list(workload.size)}, but {type(self.decoder.model).__name__} takes windows "
                f"of {frames} frames: leave the size out"
            )
        return self._draw(workload.requests, self._seed + 1 + at_pass)

    def prefix(self, rows: int) -> Tensor:
        """(rows, PREFIX): what a transcript begins with; drawn where the generation config names no language."""
        config = getattr(self.decoder.model, "generation_config", None)
        asked = (
            (getattr(config, "lang_to_id", None) or {}).get("<|en|>"),
            (getattr(config, "task_to_id", None) or {}).get("transcribe"),
            getattr(config, "no_timestamps_token_id", None),
        )
        if None in asked:
            generator = torch.Generator().manual_seed(self._seed)
            asked = tuple(torch.randint(self.decoder.vocabulary, (PREFIX - 1,), generator=generator).tolist())
        return torch.tensor([(self.decoder.config.decoder_start_token_id, *asked)]).expand(rows, -1)

    @property
    def _frames(self) -> int:
        return 2 * int(self.decoder.config.max_source_positions)  # the second convolution halves them

    def _draw(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, int(self.decoder.config.num_mel_bins), self._frames // SMOOTH + 2)
        coarse = torch.randn(shape, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=self._frames, mode="linear")
        return (0.5 * smooth).clamp(-1, 1.5)

    def _given(self) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randint(self.decoder.vocabulary, (self._check_size, STEPS), generator=generator)
        return torch.cat([self.prefix(self._check_size), drawn], 1)


class ASR(Family):
    """Speech recognition with a decoder: Whisper and models with its interface."""

    names = ("ASR",)
    category = "ASR"
    unit = "tokens"

    def default_workloads(self) -> Mapping[str, Workload]:
        members = (
            Workload(name="ASR.single_request", batch=1, requests=1, output_tokens=64),
            Workload(name="ASR.fixed_batch", batch=16, requests=16, output_tokens=64),
        )
        return {workload.name: workload for workload in members}

    def session(
        self, model: nn.Module, *, mode: Mode, backend: str, seed: int, texts: tuple[str, ...], check_size: int
    ) -> ASRSession:
        return ASRSession(model, mode=mode, backend=backend, seed=seed, check_size=check_size)

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        logits, wanted = outputs["logits"], oracle["logits"]
        return {
            "token_kl": metrics.kl_divergence(logits, wanted),
            "token_l2": metrics.relative_l2(logits, wanted),
            "token": metrics.disagreement(logits, wanted),
            "wer": metrics.wer(outputs["transcript"].unbind(), oracle["transcript"].unbind()),
        }

    def plausible(self, session: Session, workload: Workload, outputs: Tensors) -> tuple[float, Any]:
        if not isinstance(session, ASRSession):
            raise EvaluationError(f"{workload.name}: its timed tokens are scored by an ASR session, not {session!r}")
        tokens, wanted = outputs["tokens"], (workload.requests, workload.output_tokens)
        if tokens.shape != wanted:
            raise EvaluationError(f"{workload.name}: served tokens of shape {tuple(tokens.shape)}, asked for {wanted}")
        features = session.features(workload, int(outputs["pass"])).split(1)
        prompts = list(session.prefix(workload.requests))
        return plausible(
            session.decoder, prompts, tokens, noise=session.noise(), inputs=[{"input_features": x} for x in features]
        )
