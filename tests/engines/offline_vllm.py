"""A real vLLM engine in this process, on a CPU: its model within reach, greedy answers with their logprobs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # else threads that wait for work spin, and starve whoever shares the cores
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCHDYNAMO_DISABLE": "1",  # eager engines compile their sampler otherwise
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model is in this process
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
PROMPTS = [[5, 9, 77, 101, 44], list(range(20, 40)), [8]]


@dataclass(frozen=True, kw_only=True)
class Offline:
    """An engine that stands: the ``LLM``, its configuration, and the live model."""

    llm: Any
    config: Any
    model: nn.Module

    def generate(self, tokens: int = 12) -> list[tuple[list[int], list[float]]]:
        """Greedy token ids and their logprobs, for each of ``PROMPTS``."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=tokens, logprobs=1, detokenize=False, ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
        answers = (o.outputs[0] for o in self.llm.generate(prompts, sampling, use_tqdm=False))
        return [
            (list(a.token_ids), [d[i].logprob for d, i in zip(a.logprobs, a.token_ids, strict=True)]) for a in answers
        ]


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """The process's environment with these, and as it was before at the end: other tests start engines of their own."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@contextmanager
def offline_vllm(path: Path, cache: Path, **options: Any) -> Iterator[Offline]:
    """Loads the model at ``path`` eagerly, weights kept; ``cache`` is a folder for what the engine writes."""
    named = {"VLLM_CACHE_ROOT": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    asked = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    with environment(**asked, **named):
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        from fastkernels.patches.vllm.cpu_weights import keep_weights

        keep_weights()
        common = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8, "seed": 0}
        common |= {
            "enable_prefix_caching": False,
            "skip_tokenizer_init": True,
        }  # a wrong candidate's keys must not stay
        llm: Any = LLM(model=str(path), **(common | options))
        try:
            runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
            yield Offline(llm=llm, config=runner.vllm_config, model=runner.get_model())
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()
