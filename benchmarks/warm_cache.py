"""Five starts of vLLM over one warm compile cache, on one GPU with CUDA graphs: does each run its own code?

Unpatched; patched with the shipped norm; again; with an edited, wrong norm (verification off); and unpatched again.
Each is a process of its own. A start's receipt are the norm kernels of ours in a profile of its steps, most of them
replays, and the log probabilities of a text: tokens of a model with random weights hang on rounding.

    python -m benchmarks.warm_cache --out benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any

LAYERS = 4  # of Llama-3.1-8B's shape
PROMPTS = [[5, 6, 7, 8, 9], list(range(40, 72))]
TOKENS = 24  # of each prompt: the steps after the first are replays
LOADED = "Directly load AOT compilation"  # what vLLM logs where a graph comes from its cache
ROUNDING = 0.05  # nats: far above what another kernel's rounding changes, far below what the wrong norm does
KERNEL, EDITED = "_rms_norm_kernel", "_edited_norm_kernel"
RIGHT, WRONG = "normed = wide * tl.math.rsqrt(", "normed = 0.5 * wide * tl.math.rsqrt("
STARTS = ("unpatched", "patched", "patched again", "edited", "unpatched again")
KERNELS = {"patched": KERNEL, "patched again": KERNEL, "edited": EDITED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _serve(json.loads(args.child))
        return
    from benchmarks.about import about

    with tempfile.TemporaryDirectory() as name:
        starts = _starts(pathlib.Path(name))
    import vllm

    told = about()
    told["versions"]["vllm"] = vllm.__version__
    right = starts["unpatched"]["logprobs"]
    for name, start in starts.items():
        off = max(abs(a - b) for a, b in zip(start.pop("logprobs"), right, strict=True))
        start["worst difference in nats"] = round(off, 4)
        start["as expected"] = _as_expected(name, start)
        kernels = ", ".join(f"{k} x{n}" for k, n in start["kernels"].items()) or "none of ours"
        print(f"{name:16} loaded {start['loaded']!s:5} off by {off:.4f} nats; {kernels}")
    if args.out:
        args.out.write_text(json.dumps({**told, "layers": LAYERS, "starts": starts}, indent=1) + "\n")
    failed = [name for name, start in starts.items() if not start["as expected"]]
    if failed:
        sys.exit(f"not as expected: {', '.join(failed)}")


def _as_expected(name: str, start: dict[str, Any]) -> bool:
    kernel = KERNELS.get(name)
    seen = set(start["kernels"]) == ({kernel} if kernel else set())
    near = start["worst difference in nats"] < ROUNDING
    return seen and near == (name != "edited") and start["loaded"] == name.endswith("again")


def _starts(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    model, norm = folder / "model", folder / "mine" / "L1" / "rms_norm.py"
    _save_model(model)
    import fastkernels

    shipped = pathlib.Path(fastkernels.__file__).parents[1] / "kernels" / "L1" / "rms_norm.py"
    norm.parent.mkdir(parents=True)
    shutil.copy(shipped, norm)
    done = {}
    for name in STARTS:
        variables = {}
        if name in KERNELS:
            variables = {"FASTKERNELS_CANDIDATES": str(norm.parents[1])}
        if name == "edited":
            text = norm.read_text()
            if RIGHT not in text:
                sys.exit(f"the shipped norm has no line {RIGHT!r}: edit this benchmark")
            norm.write_text(text.replace(RIGHT, WRONG).replace(KERNEL, EDITED))
            variables["FASTKERNELS_VERIFY"] = "0"
        done[name] = _start(model, folder / "cache", folder / "out.json", variables)
    return done


def _start(model: pathlib.Path, cache: pathlib.Path, out: pathlib.Path, variables: dict[str, str]) -> dict[str, Any]:
    asked = json.dumps({"model": str(model), "out": str(out)})
    ours = {
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model within reach of a profiler in the start's own process
        "HF_HUB_OFFLINE": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.warm_cache", "--child", asked],
        env=os.environ | ours | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if ran.returncode:
        sys.exit(f"a start with {variables or 'nothing of ours'} failed:\n{ran.stdout[-6000:]}")
    told = json.loads(out.read_text())
    out.unlink()
    return {"loaded": LOADED in ran.stdout, **told}


def _save_model(folder: pathlib.Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fastkernels.evaluation.e2e.source import read_config

    fields = read_config("llama-3.1-8b")
    config = AutoConfig.for_model(**(fields | {"num_hidden_layers": LAYERS, "max_position_embeddings": 4096}))
    torch.manual_seed(0)
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _serve(asked: dict[str, Any]) -> None:
    import torch
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=asked["model"],
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=256,
        max_num_seqs=8,
        gpu_memory_utilization=0.3,
    )
    prompts = [{"prompt_token_ids": p} for p in PROMPTS]
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False)
    engine.generate(prompts, greedy, use_tqdm=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as window:
        engine.generate(prompts, greedy, use_tqdm=False)
        torch.cuda.synchronize()
    seen = Counter(event.name for event in window.events())
    kernels = {name: seen[name] for name in (KERNEL, EDITED) if seen[name]}
    logprobs = [
        place[token].logprob
        for output in engine.generate(prompts, scored, use_tqdm=False)
        for token, place in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    pathlib.Path(asked["out"]).write_text(json.dumps({"kernels": kernels, "logprobs": logprobs}))


if __name__ == "__main__":
    main()
