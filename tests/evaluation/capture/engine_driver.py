"""Runs one serving engine in processes of its own, with a capture around a generation: what each rank saw as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.serving import sglang_driver, vllm_driver

ROOT = Path(__file__).parents[3]
PROMPTS = [[5, 9, 17, 33, 41, 60], [7, 8, 9, 200]]
TOKENS = 4
WATCH = {"FASTKERNELS_WATCH": "1"}


def run(
    engine: str, model: Path, out: Path, *, arguments: dict[str, Any] | None = None, **options: Any
) -> tuple[int, str]:
    """Exit status and output of a process that captures ``engine`` into ``out``; tokens lie beside it, in
    ``tokens.json``: of a generation before the capture, in it and after it.

    Args:
        arguments: more of vLLM's own; the engine then runs on a GPU, as it comes.
    """
    asked = json.dumps(
        {"engine": engine, "model": str(model), "out": str(out), "arguments": arguments, "options": options}
    )
    with tempfile.TemporaryDirectory() as cache:
        if engine == "vllm":
            variables = vllm_driver.EAGER | vllm_driver.IN_PROCESS if arguments is None else {}
            environment = vllm_driver.environment(Path(cache), **variables, **WATCH)
        else:
            environment = sglang_driver.environment(**WATCH)
        environment["PYTHONPATH"] = ":".join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
        with (out.parent / f"{engine}.log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, asked],
                cwd=cache,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = sglang_driver.finish(process, 300)
            log.seek(0)
            return code, log.read()


def main(asked: dict[str, Any]) -> None:
    import fastkernels.evaluation.capture.capture as verb

    start, arguments = STARTS[asked["engine"]], asked["arguments"]
    engine, generate = start(asked["model"]) if arguments is None else start(asked["model"], arguments)
    tokens = [generate()]
    with verb.capture(engine, out=asked["out"], name="tiny", **asked["options"]):
        tokens.append(generate())
    tokens.append(generate())
    Path(asked["out"]).with_name("tokens.json").write_text(json.dumps(tokens))
    if asked["engine"] == "sglang":
        engine.shutdown()


def start_vllm(model: str, arguments: dict[str, Any] | None = None) -> Any:
    import vllm

    from fastkernels.patches.vllm.cpu_weights import keep_weights

    if arguments is None:
        keep_weights()  # else a CPU's packed weights close most sites
    engine = vllm.LLM(
        model=model,
        max_model_len=128,
        max_num_seqs=4,
        seed=0,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        **({"dtype": "float32", "enforce_eager": True} if arguments is None else arguments),
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": p} for p in PROMPTS]

    def generate() -> list[list[int]]:
        outputs = engine.generate(prompts, greedy, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return engine, generate


def start_sglang(model: str) -> Any:
    import sglang

    arguments = sglang_driver.ARGUMENTS | {"disable_radix_cache": True}  # each generation computes its prompts
    engine = sglang.Engine(model_path=model, skip_tokenizer_init=True, **arguments)
    sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}

    def generate() -> list[list[int]]:
        return [told["output_ids"] for told in engine.generate(input_ids=PROMPTS, sampling_params=sampling)]

    return engine, generate


STARTS = {"vllm": start_vllm, "sglang": start_sglang}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
