"""Whole evaluations in real engines on a CPU, in each engine's own environment: ``make engine-test``."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastkernels
from fastkernels.evaluation.e2e.scenario import load_scenario
from tests.evaluation.e2e.tiny_scenario import CANDIDATES

ENTRY = """
scenarios:
  - model: tiny-llama
    engine: {engine}
    tp: 1
    dtype: float32
    workloads: [{workloads}]
    weights:
      config:
        architectures: [LlamaForCausalLM]
        model_type: llama
        hidden_size: 128
        intermediate_size: 256
        num_hidden_layers: 2
        num_attention_heads: 4
        num_key_value_heads: 2
        head_dim: 32
        vocab_size: 320
        max_position_embeddings: 512
        initializer_range: 0.2
    rounds: 4
    block_seconds: 0.05
    reject_busy: false
    check_size: 4
    sizes: {sizes}
"""
SIZES = {"batch": 2, "requests": 4, "input_tokens": [24], "output_tokens": 6}
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no {name} here"))
    for name in ("vllm", "sglang")
]
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def scenario(folder, engine, *workloads):
    file = folder / "tiny.yaml"
    workloads = workloads or ("LLM.mixed",)
    sizes = {name: SIZES | ({"rate": 20.0} if name == "LLM.arrivals" else {}) for name in workloads}
    file.write_text(ENTRY.format(engine=engine, workloads=", ".join(workloads), sizes=json.dumps(sizes)))
    return load_scenario(file)


def verdict(folder, engine, candidates, *workloads, **options):
    found = fastkernels.evaluate(
        scenario(folder, engine, *workloads), candidates, out=folder / "run", device="cpu", threads=1, **options
    )
    (model,) = found.models
    (job,) = (folder / "run").glob("00-*")
    assert not (job / "weights").exists()  # what was drawn for the engines is taken away
    assert found.machine.versions[engine]
    return model


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_reference_is_right_and_every_arm_is_what_it_says(tmp_path, engine):
    model = verdict(tmp_path, engine, "reference", "LLM.arrivals", "LLM.mixed")
    assert (model.valid, model.passed, model.reason, model.score) == (True, True, "", 1.0)
    (correctness,) = model.correctness
    assert correctness.timed_outputs == 1.0
    parts = {metric.name.partition("_")[0] for metric in correctness.metrics}
    assert parts == ({"prompt", "step"} if engine == "vllm" else {"prompt"})
    baseline, null, candidate = (model.arms[name] for name in ("baseline", "null", "candidate"))
    assert (baseline.dispatchers, baseline.dispatcher_calls, baseline.patch) == (0, 0, None)
    assert null.dispatchers == candidate.dispatchers > 0 and candidate.dispatcher_calls > 0
    assert candidate.interposition.tasks["rms_norm"].proven
    assert {s.task for s in null.patch.applied} == {s.task for s in candidate.patch.applied if s.inside is None}
    assert [len(w.rounds) for w in model.workloads] == [4, 4]
    assert all(w.latency is not None for w in model.workloads)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_candidate_is_refused_with_the_plugins_reason(tmp_path, engine):
    model = verdict(tmp_path, engine, CANDIDATES / "wrong_by_5_percent")
    assert model.score == 0 and not model.valid
    assert model.arms["candidate"].state == "failed"
    assert "candidate arm: " in model.reason and "L1/rms_norm.py is off by" in model.reason


@pytest.mark.parametrize("engine", ENGINES)
def test_with_verification_off_it_is_red_at_the_gate(tmp_path, engine):
    model = verdict(tmp_path, engine, CANDIDATES / "wrong_by_5_percent", verify=False)
    assert model.score == 0 and not model.passed and not model.workloads
    assert "from the oracle, production" in model.reason and "is below 0.5" in model.reason


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_one_that_goes_wrong_later_is_found_in_its_timed_tokens(tmp_path, engine):
    model = verdict(tmp_path, engine, CANDIDATES / "stops_after_n_calls", "LLM.mixed")
    assert model.score == 0 and not model.passed
    assert "of the outputs of a timed block" in model.reason or "after them" in model.reason


# -- processes ---------------------------------------------------------------------------------------------------------

DRIVER = """
import json, sys, time
from pathlib import Path
from fastkernels.evaluation.e2e.arm import Arm
from fastkernels.evaluation.e2e.setup import Setup

with Arm(Setup.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])) as arm:
    arm.order("load", timeout=300)
    print(json.dumps({"arm": arm._process.pid}), flush=True)
    for line in sys.stdin:
        arm.signal(int(line))
        print(json.dumps({"sent": int(line)}), flush=True)
"""


def states(pids):
    """One letter of each process that is there."""
    found = {}
    for pid in pids:
        file = Path(f"/proc/{pid}/stat")
        if file.is_file():
            found[pid] = file.read_text().rpartition(")")[2].split()[0]
    return found


def descendants(root):
    """Processes below one, itself included, but for the shell that watches over them from another session."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid for pid in below if os.getsid(pid) == os.getsid(root)}


def eventually(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engines_own_processes_stand_still_with_their_arm_and_end_with_the_evaluator(tmp_path, engine, monkeypatch):
    from fastkernels.evaluation.e2e.setup import Setup
    from tests.engines.tiny import make

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    (entry,) = scenario(tmp_path, engine).entries
    setup = Setup(role="baseline", entry=entry, device="cpu", threads=1, model=str(make(tmp_path, "llama")))
    (tmp_path / "setup.json").write_text(setup.model_dump_json())
    command = [sys.executable, "-P", "-c", DRIVER, str(tmp_path / "setup.json"), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as evaluator:
        try:
            line = evaluator.stdout.readline()
            assert line, (tmp_path / "baseline.log").read_text()[-2000:]
            below = descendants(json.loads(line)["arm"])
            assert len(below) > 1, "the engine has processes of its own"

            def send(number):
                evaluator.stdin.write(f"{int(number)}\n")
                evaluator.stdin.flush()
                evaluator.stdout.readline()

            send(signal.SIGSTOP)
            assert eventually(lambda: set(states(below).values()) == {"T"}), states(below)
            send(signal.SIGCONT)
            assert eventually(lambda: "T" not in states(below).values()), states(below)
            send(signal.SIGSTOP)
        finally:
            evaluator.kill()
        assert eventually(lambda: not set(states(below).values()) - {"Z"}), states(below)
