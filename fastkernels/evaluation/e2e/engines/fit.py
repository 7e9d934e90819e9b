"""How large an engine is made: length, requests and cache of its workloads, so that three engines fit on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.texts import LENGTH
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.e2e.workload import Workload

BLOCK = 128  # tokens; of any engine's cache a multiple of its own
SPARE = 1.1  # of the cache, for blocks that an engine keeps for itself
SHARE = 0.25  # of a device's memory that must be free for an engine to start: three at once, each sized by its cache
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Fit(BaseModel):
    """Sizes of one engine, the same in every arm."""

    length: int  # tokens of the longest request, its prompt and what it generates
    requests: int  # at once
    cache_tokens: int
    cache_bytes: int  # of one rank

    @classmethod
    def of(cls, entry: Entry, workloads: Sequence[Workload], config: Any) -> Self:
        """Sizes for an entry's workloads; ``config`` is the model's, of transformers.

        Raises:
            EvaluationError: a workload's requests are longer than the model takes.
        """
        text = config.get_text_config(decoder=True)
        # One more than a request's own: its tokens are scored as a prompt, and a prompt asks for a token.
        longest = max(LENGTH, *(max(w.input_tokens) + w.output_tokens for w in workloads)) + 1
        limit = getattr(text, "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise EvaluationError(
                f"{entry.model}: {longest} positions are needed for the longest request (its tokens, and one more), "
                f"the model has {limit}: give its workloads fewer tokens."
            )
        requests = entry.max_num_seqs or max(w.batch for w in workloads)
        held = [w.batch * _blocks(max(w.input_tokens) + w.output_tokens + 1) for w in workloads]
        tokens = math.ceil(SPARE * max(_blocks(longest), requests * _blocks(LENGTH), *held)) + 4 * BLOCK
        width = BYTES[entry.dtype]
        return cls(
            length=longest,
            requests=requests,
            cache_tokens=tokens,
            cache_bytes=tokens * _values_of_a_token(text, entry.tp) * width,
        )


def _blocks(tokens: int) -> int:
    return math.ceil(tokens / BLOCK) * BLOCK


def _values_of_a_token(text: Any, tp: int) -> int:
    """Keys and values of one token over all layers, in one rank."""
    if getattr(text, "kv_lora_rank", None):  # latent attention: one vector, in every rank
        return text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * math.ceil(heads / tp) * size
