"""Greedy and forced decoding by prefill and single steps, timed, checked and scored: what LLM and ASR share."""

from __future__ import annotations

import copy
import inspect
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import BaseModelOutput

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.compiled import compile_model, mode_step
from fastkernels.evaluation.e2e.families.family import Mode, Served
from fastkernels.evaluation.e2e.workload import Workload

ROUND = 128  # length of a static cache is a multiple of it, so that workloads of like size share one
SCORED = 4096  # tokens scored in one call
TOP = 3
NOISE = 4.0
STRIKES = 2
_clock = time.perf_counter  # taken here, before any candidate is imported


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One batch, decoded greedily. ``tokens``: (batch, count), int64, on the CPU. Milliseconds."""

    tokens: Tensor
    latency_ms: float
    ttft_ms: float
    tpot_ms: tuple[float, ...]


def served(workload: Workload, batches: list[Generated], **outputs: Tensor) -> Served:
    """One pass over a workload, of the batches it was decoded in; the tokens are among its outputs."""
    tokens = torch.cat([batch.tokens for batch in batches])
    return Served(
        requests=workload.requests,
        tokens=tokens.numel(),
        steps=len(batches) * workload.output_tokens,
        latency_ms=tuple(batch.latency_ms for batch in batches),
        ttft_ms=tuple(batch.ttft_ms for batch in batches),
        tpot_ms=tuple(ms for batch in batches for ms in batch.tpot_ms),
        outputs={"tokens": tokens, **outputs},
    )


class Decoder:
    """Prefill and decode steps of a causal or an encoder-decoder model in one mode.

    Args:
        ids: the model's name for the tokens, ``input_ids`` or ``decoder_input_ids``.

    Eager steps grow a dynamic cache. Compiled ones share a static cache for each (batch, length): it lives as long as
    the decoder, because CUDA graphs are recorded for its addresses.
    """

    def __init__(self, model: nn.Module, *, mode: Mode, backend: str, ids: str = "input_ids") -> None:
        self.model, self.mode, self.ids = model, mode, ids
        self.device = next(model.parameters()).device
        self.config: Any = model.config
        self.vocabulary = int(self.config.get_text_config(decoder=True).vocab_size)
        self._call = compile_model(model, mode=mode, backend=backend)
        # Of the class: in a patched model the instance's forward is a dispatcher, which takes anything.
        self._keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._static: dict[tuple[int, int], Cache] = {}

    @torch.inference_mode()
    def generate(self, prompt: Tensor, *, count: int, **inputs: Tensor) -> Generated:
        """Decodes ``count`` tokens for each row of ``prompt`` (batch, length), and stops at no token.

        The host reads the first token when it is there, as a server does to stream it, and all others at the end: a
        wait in each step would slow small models down more than any kernel of theirs.

        Raises:
            EvaluationError: logits of another shape than asked for, or not finite.
        """
        self._check_length(prompt.shape[1] + count)
        prompt, inputs, cache = self._begin(prompt, count, inputs)
        clock = _Clock(self.device)
        best = []
        clock.wait()
        started = _clock()
        logits, state = self._prefill(prompt, cache, 1, inputs)
        best.append(logits[:, -1].max(-1, keepdim=True))
        best[0].indices.cpu()
        ttft = _clock() - started
        clock.mark()
        for _ in range(count - 1):
            best.append(self._step(best[-1].indices, cache, state)[:, -1].max(-1, keepdim=True))
            clock.mark()
        tokens = torch.cat([b.indices for b in best], 1).cpu()
        latency = _clock() - started
        # NaN is the maximum wherever it is, so the maxima say whether logits were finite: one small read, after time.
        finite = torch.cat([b.values for b in best], 1).isfinite()
        if not finite.all():
            raise EvaluationError(
                f"the model's logits are not finite at {int((~finite).sum())} of {finite.numel()} tokens"
            )
        return Generated(tokens=tokens, latency_ms=latency * 1e3, ttft_ms=ttft * 1e3, tpot_ms=clock.milliseconds())

    @torch.inference_mode()
    def forced(self, ids: Tensor, *, prefill: int, kept: int, **inputs: Tensor) -> Tensor:
        """Logits on given tokens: the last ``kept`` of a prefill of ``prefill`` tokens, then the others one by one.

        Both ways, because they are two programs: other kernels, other shapes and, compiled, other graphs. A prefill
        alone says nothing of decoding, and neither says whether what one writes to the cache the other reads right.

        Args:
            ids: (batch, length).

        Returns:
            (batch, kept + length - prefill, vocabulary) on the CPU; float64 of a float64 model, else float32.
        """
        rows, inputs, cache = self._begin(ids, 0, inputs)
        logits, state = self._prefill(rows[:, :prefill].contiguous(), cache, kept, inputs)
        parts = [_host(logits)]
        for at in range(prefill, ids.shape[1]):
            parts.append(_host(self._step(rows[:, at : at + 1].contiguous(), cache, state)))
        return torch.cat(parts, 1)

    @torch.inference_mode()
    def whole(self, ids: Tensor, *, kept: int, **inputs: Tensor) -> Tensor:
        """Logits of the last ``kept`` places, by one eager call over whole sequences without a cache; on the device."""
        keep = {"logits_to_keep": kept} if self._keeps else {}
        placed = {name: self._place(value) for name, value in inputs.items()}
        out = self.model(**{self.ids: ids.to(self.device)}, use_cache=False, **keep, **placed)
        return self._checked(out.logits[:, -kept:], ids.shape[0], kept)

    def _check_length(self, tokens: int) -> None:
        config = self.config.get_text_config(decoder=True)
        limit = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise EvaluationError(
                f"{tokens} tokens a request, {type(self.model).__name__} has {limit} positions: give the workload fewer"
            )

    def _begin(self, ids: Tensor, count: int, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Cache]:
        """Everything that is ready before the clock starts: inputs on the device, an empty cache."""
        batch, length = ids.shape[0], ids.shape[1] + count
        ids, inputs = ids.to(self.device), {name: self._place(value) for name, value in inputs.items()}
        if self.mode == "eager":
            return ids, inputs, self._new(None)
        key = (batch, math.ceil(length / ROUND) * ROUND)
        if key not in self._static:
            self._static[key] = self._new(key[1])
            # Layers take shape and dtype from their first keys. That must not be seen by the compiler.
            self.model(**{self.ids: ids[:, :1]}, past_key_values=self._static[key], use_cache=True, **inputs)
        self._static[key].reset()
        return ids, inputs, self._static[key]

    def _new(self, length: int | None) -> Cache:
        """A static cache of ``length``, or a dynamic one."""
        config = self.config
        if config.is_encoder_decoder:
            config = copy.deepcopy(config)
            config.num_hidden_layers = config.decoder_layers  # the name stands for the encoder's layers in some configs

        def one(size: int | None) -> Cache:
            return StaticCache(config=config, max_cache_len=size) if size else DynamicCache(config=config)

        if not config.is_encoder_decoder:
            return one(length)
        return EncoderDecoderCache(one(length), one(length and config.max_source_positions))

    def _prefill(
        self, ids: Tensor, cache: Cache, kept: int, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits of the last ``kept`` places, and what the steps need besides the cache."""
        keep = {"logits_to_keep": kept} if self._keeps else {}
        mode_step(self.mode)
        out = self._call(**{self.ids: ids}, past_key_values=cache, use_cache=True, **keep, **inputs)
        state: dict[str, Any] = {}
        if self.config.is_encoder_decoder:
            encoded = out.encoder_last_hidden_state.clone()  # a graph's output is gone after the next step
            state["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
        return self._checked(out.logits[:, -kept:], ids.shape[0], kept), state

    def _step(self, token: Tensor, cache: Cache, state: dict[str, Any]) -> Tensor:
        mode_step(self.mode)
        out = self._call(**{self.ids: token}, past_key_values=cache, use_cache=True, **state)
        return self._checked(out.logits, token.shape[0], 1)

    def _checked(self, logits: Tensor, batch: int, places: int) -> Tensor:
        wanted = (batch, places, self.vocabulary)
        name = type(self.model).__name__
        if type(logits) is not Tensor:  # a subclass could compute later, when the clock has stopped
            raise EvaluationError(f"{name} returned logits of type {type(logits).__name__}: return a plain tensor")
        if logits.shape == wanted:
            return logits
        rows = logits.shape[0] if logits.dim() == 3 else 0
        what = f"{rows} of {batch} rows" if rows != batch else f"logits of shape {tuple(logits.shape)}"
        raise EvaluationError(
            f"{name} emitted {what}: asked for {wanted}, got {tuple(logits.shape)}; "
            "a module in it, or a candidate in a module's place, drops rows or tokens: return as many as came in"
        )

    def _place(self, value: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype)


@torch.inference_mode()
def plausible(
    decoder: Decoder,
    prompts: list[Tensor],
    tokens: Tensor,
    *,
    noise: float,
    inputs: list[dict[str, Tensor]] | None = None,
) -> tuple[float, dict[str, float]]:
    """Share of greedily decoded tokens that ``decoder``, an unpatched one, would have given too, and what was counted.

    One eager call over prompt and tokens gives its logits where each token was chosen. A token is plausible among the
    ``TOP`` greatest there, or not further below the greatest than ``NOISE`` times ``noise``, the root mean square by
    which this model's logits differ between two of its own ways to compute them: a choice so near is arithmetic's.
    After ``STRIKES`` implausible tokens in a request the rest of it counts as implausible: a model that only repeats
    itself makes what it repeats likely.

    Args:
        prompts: one vector a request; ``inputs``: what else its call takes, of batch 1.
        tokens: (requests, count).
    """
    count = tokens.shape[1]
    good = torch.zeros(tokens.shape, dtype=torch.bool)
    top, near = 0, 0
    for rows in _chunks(prompts, count):
        chosen = tokens[rows].to(decoder.device)
        ids = torch.cat([torch.stack([prompts[row] for row in rows]).to(decoder.device), chosen], 1)
        named = [inputs[row] for row in rows] if inputs else [{}]
        extra = {name: torch.cat([each[name] for each in named]) for name in named[0]}
        logits = decoder.whole(ids, kept=count + 1, **extra)[:, :-1]
        value = logits.gather(-1, chosen.unsqueeze(-1))
        is_top = (logits > value).sum(-1) < TOP
        is_near = (logits.amax(-1) - value.squeeze(-1)).double() <= NOISE * noise
        top, near = top + int(is_top.sum()), near + int((is_near & ~is_top).sum())
        good[rows] = (is_top | is_near).cpu()
    share, struck = standing_share(good)
    return share, {"tokens": good.numel(), "top": top, "near": near, "noise": noise, "struck": struck}


def standing_share(good: Tensor) -> tuple[float, int]:
    """Share of plausible tokens, and in how many requests it was cut short: after ``STRIKES`` implausible tokens the
    rest of a request counts as implausible too. ``good``: bool (requests, count).

    >>> standing_share(torch.tensor([[True, False, True, False, True, True]]))
    (0.3333333333333333, 1)
    """
    alive = (~good).cumsum(1) < STRIKES
    return (good & alive).double().mean().item(), int((~alive[:, -1]).sum())


def _chunks(prompts: list[Tensor], count: int) -> list[list[int]]:
    """Requests that one call scores: of one length, in order."""
    chunks: list[list[int]] = []
    for row, prompt in enumerate(prompts):
        full = bool(chunks) and (len(chunks[-1]) + 1) * (len(prompt) + count) > SCORED
        if full or not chunks or len(prompts[chunks[-1][0]]) != len(prompt):
            chunks.append([])
        chunks[-1].append(row)
    return chunks


def _host(logits: Tensor) -> Tensor:
    """A copy on the CPU, in at least float32."""
    return logits.to("cpu", torch.promote_types(logits.dtype, torch.float32), copy=True)


class _Clock:
    """Gaps between marks: the device's own time on CUDA, where the host runs ahead; else the host's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._marks: list[Any] = []

    def wait(self) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)

    def mark(self) -> None:
        if self._device is None:
            self._marks.append(_clock())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def milliseconds(self) -> tuple[float, ...]:
        self.wait()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device is None:
            return tuple((b - a) * 1e3 for a, b in pairs)
        return tuple(a.elapsed_time(b) for a, b in pairs)
