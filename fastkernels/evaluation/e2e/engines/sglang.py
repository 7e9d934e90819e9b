"""SGLang, offline: an ``Engine`` whose scheduler is a process of its own; tokens are timed as it streams them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.engine import Engine, Request, Response, Scores, clock, scores_of
from fastkernels.evaluation.e2e.engines.fit import Fit
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.serving.sglang_client import Verb, call

# Of what is free when it starts; the cache itself is sized in tokens, so that three engines fit on one device.
MEMORY = {"cpu": 0.3, "cuda": 0.7}
ON_CPU = {"attention_backend": "torch_native", "sampling_backend": "pytorch", "grammar_backend": "none"}


class Sglang(Engine):
    """One ``sglang.Engine``. Its log probabilities are of logits after every mask: it cannot be made to decode given
    tokens and tell what it would have chosen."""

    can_force = False

    def __init__(self, entry: Entry, *, model: str, mode: Mode, device: str, fit: Fit) -> None:
        import sglang

        options: dict[str, Any] = {
            "model_path": model,
            "dtype": entry.dtype,
            "tp_size": entry.tp,
            "device": device,
            "random_seed": entry.seed,
            "skip_tokenizer_init": True,
            "disable_radix_cache": True,
            "max_running_requests": fit.requests,
            "max_total_tokens": fit.cache_tokens,
            "mem_fraction_static": MEMORY[device],
            "kv_cache_dtype": entry.kv_cache_dtype or "auto",
            "disable_cuda_graph": mode == "eager",
            "log_level": "warning",
        }
        options |= ON_CPU if device == "cpu" else {}
        self._engine = sglang.Engine(**(options | entry.engine_options))

    def serve(self, requests: Sequence[Request]) -> list[Response]:
        async def one(request: Request, started: float) -> Response:
            if request.at:
                await asyncio.sleep(max(0.0, request.at - (clock() - started)))
            sampling = {"temperature": 0.0, "max_new_tokens": request.count, "ignore_eos": True}
            chunks = await self._engine.async_generate(input_ids=request.prompt, sampling_params=sampling, stream=True)
            tokens: list[int] = []
            times: list[float] = []
            async for chunk in chunks:
                now, fresh = clock() - started, chunk["output_ids"]
                whole = len(fresh) == chunk["meta_info"]["completion_tokens"]  # else only what is new
                tokens = list(fresh) if whole else [*tokens, *fresh]
                times.extend((len(tokens) - len(times)) * [now])
            return Response(tokens=tokens, times=times)

        async def all_of_them() -> list[Response]:
            started = clock()
            return await asyncio.gather(*(one(request, started) for request in requests))

        return self._engine.loop.run_until_complete(all_of_them())

    def score(self, texts: Sequence[Sequence[int]], k: int) -> list[Scores]:
        outputs = self._engine.generate(
            input_ids=[list(text) for text in texts],
            sampling_params={"temperature": 0.0, "max_new_tokens": 1, "ignore_eos": True},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=k,
        )
        found = []
        for text, output in zip(texts, outputs, strict=True):
            told = output["meta_info"]
            own = [value for value, token, _ in told["input_token_logprobs"][1:]]
            best = [[(token, value) for value, token, _ in place] for place in told["input_top_logprobs"][1:]]
            if len(own) != len(text) - 1 or len(best) != len(own):
                raise EvaluationError(
                    f"SGLang told {len(own)} and {len(best)} log probabilities of a text's {len(text) - 1}"
                )
            ranks = [1 + sum(value > mine for _, value in place) for mine, place in zip(own, best, strict=True)]
            found.append(scores_of(best, list(zip(own, ranks, strict=True)), k))
        return found

    def call(self, verb: str, *arguments: str) -> list[str]:
        return call(self._engine, cast(Verb, verb), *arguments)

    def close(self) -> None:
        self._engine.shutdown()
