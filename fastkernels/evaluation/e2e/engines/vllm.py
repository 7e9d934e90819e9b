"""vLLM, offline: its own scheduler and step loop, requests added as they come."""

from __future__ import annotations

import gc
import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastkernels.evaluation.e2e.engines.engine import Engine, Request, Response, Scores, clock, scores_of
from fastkernels.evaluation.e2e.engines.fit import SHARE, Fit
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.scenario import Entry


class Vllm(Engine):
    """One ``LLM``. Its cache is sized in bytes, so that it profiles no memory while other arms start beside it."""

    can_force = True

    def __init__(self, entry: Entry, *, model: str, mode: Mode, fit: Fit) -> None:
        from vllm import LLM

        options: dict[str, Any] = {
            "model": model,
            "dtype": entry.dtype,
            "tensor_parallel_size": entry.tp,
            "seed": entry.seed,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "max_model_len": fit.length,
            "max_num_seqs": fit.requests,
            "kv_cache_memory_bytes": fit.cache_bytes,
            "kv_cache_dtype": entry.kv_cache_dtype or "auto",
            "gpu_memory_utilization": SHARE,
            "enforce_eager": mode == "eager",
        }
        self._llm = LLM(**(options | entry.engine_options))
        self._names = map(str, itertools.count())

    def serve(self, requests: Sequence[Request]) -> list[Response]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        engine, started = self._llm.llm_engine, clock()
        responses = [Response(tokens=[], times=[]) for _ in requests]
        waiting = deque(sorted(range(len(requests)), key=lambda i: requests[i].at))
        named: dict[str, Response] = {}
        while waiting or engine.has_unfinished_requests():
            now = clock() - started
            while waiting and requests[waiting[0]].at <= now:
                i = waiting.popleft()
                name = next(self._names)
                named[name] = responses[i]
                greedy = SamplingParams(
                    temperature=0.0,
                    max_tokens=requests[i].count,
                    ignore_eos=True,
                    detokenize=False,
                    output_kind=RequestOutputKind.DELTA,
                )
                engine.add_request(name, _prompt(requests[i].prompt), greedy)
            if not engine.has_unfinished_requests():
                time.sleep(max(0.0, requests[waiting[0]].at - (clock() - started)))
                continue
            stepped = engine.step()
            now = clock() - started
            for output in stepped:
                fresh = output.outputs[0].token_ids
                named[output.request_id].tokens.extend(fresh)
                named[output.request_id].times.extend(len(fresh) * [now])
        return responses

    def score(self, texts: Sequence[Sequence[int]], k: int) -> list[Scores]:
        from vllm import SamplingParams

        ask = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=k, detokenize=False, ignore_eos=True)
        found = []
        for text, output in zip(texts, self._all(texts, [ask] * len(texts)), strict=True):
            places = output.prompt_logprobs[1:]
            wanted = [place[token] for place, token in zip(places, text[1:], strict=True)]
            found.append(scores_of([_pairs(p) for p in places], [(w.logprob, w.rank) for w in wanted], k))
        return found

    def score_steps(self, texts: Sequence[Sequence[int]], k: int) -> list[Scores]:
        from vllm import SamplingParams

        # What a mask allows is not what log probabilities are of: those are of the logits before it.
        asks = [
            SamplingParams(
                temperature=0.0,
                max_tokens=2,
                logprobs=k,
                allowed_token_ids=[text[-1]],
                detokenize=False,
                ignore_eos=True,
            )
            for text in texts
        ]
        found = []
        for text, output in zip(texts, self._all([text[:-1] for text in texts], asks), strict=True):
            place = output.outputs[0].logprobs[1]
            again = place[text[-1]]
            found.append(scores_of([_pairs(place)], [(again.logprob, again.rank)], k))
        return found

    def call(self, verb: str, *arguments: str) -> list[str]:
        return self._llm.collective_rpc(verb, args=arguments)

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def _all(self, texts: Sequence[Sequence[int]], asks: list[Any]) -> list[Any]:
        prompts = [{"prompt_token_ids": list(text)} for text in texts]
        return self._llm.generate(prompts, asks, use_tqdm=False)


def _prompt(tokens: list[int]) -> Any:
    """As the engine's own front end hands it over."""
    return {"type": "token", "prompt_token_ids": tokens}


def _pairs(place: Any) -> list[tuple[int, float]]:
    return [(token, found.logprob) for token, found in place.items()]
