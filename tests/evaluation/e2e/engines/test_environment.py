"""What an engine's arm is told by its environment, how large it is made, and what it says for all its ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.environment import environment_of
from fastkernels.evaluation.e2e.engines.fit import Fit
from fastkernels.evaluation.e2e.engines.proof import reports_of, why_refused, windows_of
from fastkernels.evaluation.e2e.machine import machine
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.e2e.setup import Setup
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.patches.interposition import Evidence, Interposition
from fastkernels.serving.settings import Settings
from fastkernels.serving.worker_report import WorkerReport


def entry(**changes):
    return Entry(
        **({"model": "a/b", "tp": 1, "dtype": "bfloat16", "workloads": ["LLM.mixed"], "engine": "vllm"} | changes)
    )


def environment(folder, role, *, device="cpu", caller=None, **changes):
    setup = Setup(
        role=role,
        entry=entry(**changes),
        device=device,
        threads=1,
        candidates="/some/folder",
        select=("*norm*", "a:b"),
        standing=(("model.norm", "rms_norm"),),
    )
    return environment_of(setup, folder, folder / "caches" / role, caller or {})


def test_each_arm_asks_its_plugin_for_what_it_is(tmp_path):
    told = {role: Settings.from_environment(environment(tmp_path, role)) for role in ("baseline", "null", "candidate")}
    assert told["baseline"].watch and told["baseline"].candidates is None
    assert told["null"].candidates == "identity"
    assert json.loads(told["null"].sites.read_text()) == [["model.norm", "rms_norm"]]
    assert told["candidate"].candidates == "/some/folder" and told["candidate"].select == ("*norm*", "a:b")
    assert all(settings.on_error == "stop" for settings in told.values())
    assert len({settings.report_dir for settings in told.values()}) == 3


def test_nothing_that_the_caller_asks_of_the_plugin_reaches_an_arm(tmp_path):
    caller = {"FASTKERNELS_CANDIDATES": "shipped", "FASTKERNELS_ON_ERROR": "serve", "PATH": "/bin"}
    told = environment(tmp_path, "baseline", caller=caller)
    assert "FASTKERNELS_CANDIDATES" not in told and told["FASTKERNELS_ON_ERROR"] == "stop"
    assert told["PATH"] == "/bin"


def test_caches_are_the_arms_own_and_what_a_caller_chose_of_the_engine_stays(tmp_path):
    caller = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CACHE_ROOT": "/shared"}
    one, two = (environment(tmp_path, role, caller=caller) for role in ("baseline", "candidate"))
    assert one["VLLM_CACHE_ROOT"] != two["VLLM_CACHE_ROOT"] and "/shared" not in one["VLLM_CACHE_ROOT"]
    assert one["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"


@pytest.mark.parametrize(
    ("caller", "tp", "wanted"), [({}, 1, "2"), ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 2, "6,7"), ({}, 2, "2,3")]
)
def test_an_arm_sees_its_devices_alone(tmp_path, caller, tp, wanted):
    assert environment(tmp_path, "baseline", device="cuda:2", caller=caller, tp=tp)["CUDA_VISIBLE_DEVICES"] == wanted


def test_an_engine_runs_as_itself_on_a_gpu_and_eager_on_a_cpu():
    assert entry().modes_on("cuda") == ("engine",) and entry().modes_on("cpu") == ("eager",)
    assert entry(enforce_eager=True).modes_on("cuda") == ("eager",)
    assert entry(tp=2, kv_cache_dtype="fp8").unsupported() is None


def test_a_missing_plugin_is_told_with_the_way_out(monkeypatch):
    from fastkernels.evaluation.e2e.engines import engine

    monkeypatch.setattr(engine, "PLUGINS", {"vllm": "no.such.group"})
    with pytest.raises(EvaluationError, match=r"no entry point of fastkernels .*it would run unpatched\. Install"):
        engine.start(entry(), model="", mode="eager", device="cpu", fit=None)


def test_the_engines_version_is_among_those_that_are_not_mixed():
    assert "pytest" in machine("cpu", ["pytest"]).versions and "pytest" not in machine("cpu").versions


# -- sizes -------------------------------------------------------------------------------------------------------------

LLAMA_8B = LlamaConfig(
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096, max_position_embeddings=8192
)


def work(batch, length, count):
    return Workload(name="LLM.mixed", batch=batch, requests=batch, input_tokens=(length,), output_tokens=count)


def test_a_cache_holds_the_largest_batch_and_an_engine_the_longest_request():
    fit = Fit.of(entry(), [work(64, 512, 64), work(1, 2048, 1)], LLAMA_8B)
    assert (fit.length, fit.requests) == (2050, 64)
    assert 64 * 577 < fit.cache_tokens < 1.3 * 64 * 640
    assert fit.cache_bytes == fit.cache_tokens * 2 * 32 * 8 * 128 * 2
    assert Fit.of(entry(tp=2), [work(64, 512, 64)], LLAMA_8B).cache_bytes < fit.cache_bytes


def test_too_long_a_request_says_how_long_the_model_goes():
    with pytest.raises(EvaluationError, match=r"a/b: 8193 positions are needed .* the model has 8192"):
        Fit.of(entry(), [work(1, 8160, 32)], LLAMA_8B)


# -- ranks -------------------------------------------------------------------------------------------------------------


def report(rank, **changes):
    told = {"engine": "vllm", "version": "0", "pid": 1, "rank": rank, "world_size": 2, "state": "patched"}
    return WorkerReport(**(told | changes)).model_dump_json()


def window(*, proven, calls=3):
    seen = Evidence(candidate="L1/rms_norm.py", state="applied", calls=calls, kernels={"k": 2}, proven=proven)
    if not proven:
        seen.why_not = "no call was counted"
    return Interposition(model="M", pid=1, tasks={"rms_norm": seen}).model_dump_json()


def test_a_rank_that_is_silent_or_differs_is_an_error():
    with pytest.raises(EvaluationError, match="1 workers answered, of 2"):
        reports_of([report(0)], ranks=2)
    with pytest.raises(EvaluationError, match="ranks differ in what stands on them"):
        reports_of([report(0), report(1, state="unpatched", reason="x")], ranks=2)


def test_a_task_is_proven_where_it_is_in_every_rank_and_counts_are_sums():
    both = windows_of([window(proven=True), window(proven=True)], ranks=2).tasks["rms_norm"]
    assert both.proven and both.calls == 6 and both.kernels == {"k": 4}
    one = windows_of([window(proven=True), window(proven=False)], ranks=2).tasks["rms_norm"]
    assert not one.proven and one.why_not == "rank 1: no call was counted"


def test_what_workers_left_says_why_an_engine_did_not_start(tmp_path: Path):
    log, reports = tmp_path / "candidate.log", tmp_path / "reports"
    reports.mkdir()
    assert why_refused(reports, log) == ""
    log.write_text("(Core pid=7) ERROR fastkernels.errors.ServingError: no such folder\nRuntimeError: see above\n")
    assert why_refused(reports, log) == "ServingError: no such folder"
    (reports / "vllm-target-rank0.json").write_text(report(0, state="unpatched", reason="PatchError: off by 5%"))
    assert why_refused(reports, log) == "PatchError: off by 5%"
