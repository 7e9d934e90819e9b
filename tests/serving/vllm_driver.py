"""Runs one vLLM engine in a process of its own: ``run(steps, ...)`` here, ``main`` there. What each step gave comes
back as JSON in a file; an engine that fails to start may take its process with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = [[5, 6, 7, 8, 9], [40, 41]]
TOKENS = 12  # of each prompt; the prefill is one step, so the model is called as often
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
}
EAGER = {"TORCHDYNAMO_DISABLE": "1"}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one engine's process ended: what its steps gave (nothing, if it did not start), and all that it printed."""

    code: int
    results: dict[str, Any]
    log: str


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The variables of an engine on a CPU, without any of ours but those given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTKERNELS_", "VLLM_"))}
    caches = {"VLLM_CACHE_ROOT": str(cache / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    return inherited | ENVIRONMENT | caches | more


def run(
    *steps: str, model: Path, cache: Path, variables: dict[str, str], piecewise: bool = False, **arguments: Any
) -> Ran:
    """An engine with ``arguments`` that takes ``steps``, in order."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        asked = json.dumps(
            {"model": str(model), "steps": steps, "out": str(out), "piecewise": piecewise, "arguments": arguments}
        )
        done = subprocess.run(
            [sys.executable, "-P", __file__, asked],
            cwd=folder,
            env=environment(cache, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        results = json.loads(out.read_text()) if out.exists() else {}
    return Ran(code=done.returncode, results=results, log=done.stdout)


def main(asked: dict[str, Any]) -> None:
    import vllm

    if asked["piecewise"]:
        compile_piecewise_on_cpu()
    engine = vllm.LLM(
        model=asked["model"],
        **{
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 128,
            "max_num_seqs": 4,
            "seed": 0,
            "enable_prefix_caching": False,
        }
        | asked["arguments"],
    )
    results: dict[str, Any] = {"pid": os.getpid()}
    for step in asked["steps"]:
        name, _, argument = step.partition(":")
        results[step] = STEPS[name](engine, *([argument] if argument else []))
    Path(asked["out"]).write_text(json.dumps(results))


def generate(engine: Any, _: str = "") -> list[list[int]]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    outputs = engine.generate([{"prompt_token_ids": p} for p in PROMPTS], greedy, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs]


def ask(engine: Any, verb: str) -> list[Any]:
    return [json.loads(answer) if answer else None for answer in engine.collective_rpc(f"fastkernels_{verb}")]


def reload(engine: Any) -> None:
    engine.collective_rpc("reload_weights")


def live_patch(engine: Any, folder: str) -> dict[str, Any]:
    """``fastkernels.patch`` on the engine, around one generation; or its refusal."""
    import fastkernels

    try:
        with fastkernels.patch(engine, folder) as patch:
            tokens = generate(engine)
            return {"tokens": tokens, "calls": sum(s.calls for s in patch.report.applied)}
    except fastkernels.PatchError as error:
        return {"error": str(error)}


STEPS = {"generate": generate, "ask": ask, "reload": reload, "patch": live_patch}


def compile_piecewise_on_cpu() -> None:
    """vLLM compiles piecewise, with its own cache, on GPUs only; here on a CPU too, with Inductor's C++."""
    import dataclasses

    from vllm.config import CompilationMode, CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.platforms.cpu import CpuPlatform

    from fastkernels.evaluation.conflicts.vllm_engine import _declare_cuda_operators

    current_platform.import_kernels()
    _declare_cuda_operators()
    original = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: type, config: Any) -> None:
        original(cls, config)
        compilation = config.compilation_config
        compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "inductor"
        compilation.cudagraph_mode, compilation.compile_sizes = CUDAGraphMode.NONE, []
        for field in dataclasses.fields(compilation.pass_config):
            if getattr(compilation.pass_config, field.name) is True:  # vLLM has no passes for CPU
                setattr(compilation.pass_config, field.name, False)

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
