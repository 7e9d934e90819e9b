"""Runs one SGLang engine in processes of its own: ``run(steps, ...)`` here, ``main`` there. What each step gave comes
back as JSON in a file; a scheduler that fails to start kills the process that launched it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = [[5, 9, 17, 33, 41, 60], [7, 8, 9, 200]]
LONG = [list(range(3, 60)), list(range(100, 150))]
TOKENS = 12  # of each prompt; the model is called as often, or once more: the scheduler runs a step ahead
TIMEOUT_S = 400
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": f"{ROOT}/tests/engines/stubs",
    "SGLANG_USE_CPU_ENGINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
# Of the engine, as keywords; of its server, as flags.
ARGUMENTS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "dtype": "float32",
    "disable_cuda_graph": True,
    "max_total_tokens": 2048,
    "max_running_requests": 4,
    "mem_fraction_static": 0.3,
    "random_seed": 1,
    "log_level": "error",
}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one engine's process ended: what its steps gave (nothing, if it did not start), and all that it printed."""

    code: int
    results: dict[str, Any]
    log: str


def environment(**more: str) -> dict[str, str]:
    """The variables of an engine on a CPU, without any of ours but those given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTKERNELS_", "SGLANG_"))}
    return inherited | ENVIRONMENT | more


def run(*steps: str, model: Path, variables: dict[str, str], **arguments: Any) -> Ran:
    """An engine with ``arguments`` that takes ``steps``, in order."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        asked = json.dumps({"model": str(model), "steps": steps, "out": str(out), "arguments": arguments})
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, asked],
                cwd=folder,
                env=environment(**variables),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = finish(process, TIMEOUT_S)
        results = json.loads(out.read_text()) if out.exists() else {}
        return Ran(code=code, results=results, log=log.read_text(errors="replace"))


def finish(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Waits for a process that leads a session, then ends all that it left."""
    try:
        return process.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(asked: dict[str, Any]) -> None:
    import sglang

    from fastkernels.errors import ServingError
    from fastkernels.serving.sglang_client import call

    engine = sglang.Engine(model_path=asked["model"], skip_tokenizer_init=True, **(ARGUMENTS | asked["arguments"]))

    def take(step: str) -> Any:
        kind, what, *_ = [*step.split(":"), ""]  # and what tells a step from the same one before
        if kind == "ask":
            try:
                return [json.loads(answer or "null") for answer in call(engine, f"fastkernels_{what}")]
            except ServingError as error:
                return {"error": str(error)}
        if kind == "reload":
            return engine.update_weights_from_disk(asked["model"])
        sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
        prompts = LONG if kind == "long" else PROMPTS
        return [o["output_ids"] for o in engine.generate(input_ids=prompts, sampling_params=sampling)]

    results = {"pid": os.getpid()} | {step: take(step) for step in asked["steps"]}
    Path(asked["out"]).write_text(json.dumps(results))
    engine.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
