"""SGLang's real ModelRunner in this process, without scheduler and HTTP: builds tiny models and decodes greedily."""

from __future__ import annotations

import importlib
import os
from array import array
from pathlib import Path
from typing import Any

from fastkernels.patches.sglang.running import runtime_context

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

PROMPTS = ([1, 5, 9, 17, 33], [7, 8, 9])
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "dtype": "float32",
    "disable_cuda_graph": True,
    "skip_tokenizer_init": True,
    "max_total_tokens": 2048,
    "max_running_requests": 4,
    "sampling_backend": "pytorch",
    "log_level": "error",
    "grammar_backend": "none",
    "mem_fraction_static": 0.3,
}


def build(path: Path, rank: int = 0, **overrides: Any) -> Any:
    """A runner whose model is loaded, in the state in which an engine warms up."""
    from sglang.srt.entrypoints.engine import _set_envs_and_config
    from sglang.srt.server_args import PortArgs, ServerArgs

    one_batch = importlib.import_module("sglang.benchmark.one_batch" if runtime_context() else "sglang.bench_one_batch")
    one_batch.get_tokenizer = lambda *args, **kwargs: None
    arguments = ServerArgs(model_path=str(path), **(SETTINGS | overrides))
    getattr(arguments, "resolve_once", lambda: None)()  # since 0.5.18; before, the constructor does it
    _set_envs_and_config(arguments)
    _publish(arguments, rank)
    runner, _ = one_batch.load_model(arguments, PortArgs.init_new(arguments), rank, rank)
    return runner


def _publish(arguments: Any, rank: int) -> None:
    """As a scheduler's process does, before there is a runner: 0.5.13 leaves it to the runner."""
    context = runtime_context()
    if context is None:
        return
    ranks = getattr(context, "SpawnRanks", None)  # since 0.5.23
    context.publish(
        arguments, role="scheduler", **({"ranks": ranks(world_rank=rank, gpu_id=rank)} if ranks is not None else {})
    )


def generate(runner: Any, steps: int = 6) -> tuple[list[list[int]], Any]:
    """Greedy tokens of each prompt, and the logits of the first step: one prefill and ``steps - 1`` decodes."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    runner.clear()
    requests = []
    for i, prompt in enumerate(PROMPTS):
        request = Req(
            rid=str(i),
            origin_input_text="",
            origin_input_ids=array("q", prompt),
            sampling_params=SamplingParams(temperature=0, max_new_tokens=steps),
        )
        request.full_untruncated_fill_ids = request.origin_input_ids
        request.logprob_start_len = -1
        _extend(request)
        requests.append(request)
    ids, logits, batch = runner.extend(requests)
    tokens, first = [[t] for t in ids.tolist()], logits.clone()
    for _ in range(steps - 1):
        ids, _ = runner.decode(ids, batch)
        for made, token in zip(tokens, ids.tolist(), strict=True):
            made.append(token)
    return tokens, first


def _extend(request: Any) -> None:
    """The whole prompt is to be computed, in the words of each version."""
    count = len(request.origin_input_ids)
    if hasattr(request, "set_extend_range"):
        request.set_extend_range(0, count)
    elif hasattr(request, "set_extend_input_len"):  # 0.5.13
        request.fill_len = count
        request.set_extend_input_len(count)
    else:  # since 0.5.23
        request.extend_end = count


def model_of(runner: Any) -> Any:
    """The nn.Module inside the benchmark's runner."""
    return runner.torch_runner.model


def close() -> None:
    """Takes the process groups down, so that another runner can be built in this process."""
    from sglang.srt.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
    from sglang.srt.eplb import expert_location

    destroy_model_parallel()
    destroy_distributed_environment()
    context = runtime_context()
    if context is None:
        expert_location._global_expert_location_metadata = None
    else:
        context.get_resources().expert_location_metadata = None
