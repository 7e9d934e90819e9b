"""The plugin in real vLLM engines on a CPU, each in processes of its own: ``make engine-test``."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.engines.tiny import make
from tests.serving.candidates import norm
from tests.serving.vllm_driver import EAGER, IN_PROCESS, TOKENS, TWO_RANKS, run

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
]

NORMS = 5  # of the tiny Llama: two a layer, and the last
TASK = "rms_norm"


def whole_steps(calls):
    """Each step calls each norm once. The second prompt may come a step late, from another process."""
    return calls in (NORMS * TOKENS, NORMS * (TOKENS + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def engine(folder):
    model = make(folder / "models", "llama")

    def start(*steps, variables, **arguments):
        return run(*steps, model=model, cache=folder / "cache", variables=EAGER | variables, **arguments)

    return start


@pytest.fixture(scope="module")
def right(folder):
    return norm(folder / "right")


@pytest.fixture(scope="module")
def watched(engine):
    """Without candidates: what vLLM itself does, told by our verbs."""
    ran = engine("generate", "ask:report", "ask:sites", variables={"FASTKERNELS_WATCH": "1"} | IN_PROCESS)
    assert ran.code == 0, ran.log
    return ran.results


@pytest.fixture(scope="module")
def patched(engine, right, folder):
    """With the right candidate, in the processes that vLLM makes by default."""
    ran = engine(
        "ask:start_window",
        "generate",
        "ask:end_window",
        "ask:report",
        "ask:sites",
        "reload",
        "generate:2",
        "ask:report",
        f"patch:{right}",
        variables={"FASTKERNELS_CANDIDATES": str(right), "FASTKERNELS_REPORT_DIR": str(folder / "reports")},
    )
    assert ran.code == 0, ran.log
    return ran.results


def test_a_watched_engine_is_not_touched_and_tells_so(watched):
    (report,) = watched["ask:report"]
    assert (report["state"], report["dispatchers"], report["patch"]) == ("watching", 0, None)
    assert watched["ask:sites"] == [[]]
    assert "enforce_eager=True" in report["compilation"]


def test_a_right_candidate_runs_in_the_workers_process_and_changes_no_token(patched, watched):
    (report,) = patched["ask:report"]
    assert report["pid"] != patched["pid"]
    assert (report["state"], report["dispatchers"]) == ("patched", NORMS)
    assert patched["generate"] == watched["generate"]


def test_its_calls_are_counted_and_proven_by_a_window(patched):
    (window,) = patched["ask:end_window"]
    evidence = window["tasks"][TASK]
    assert evidence["proven"]
    assert whole_steps(evidence["calls"])
    assert [task for _, task in patched["ask:sites"][0]] == [TASK] * NORMS


def test_it_still_runs_after_weights_were_reloaded(patched):
    (report,) = patched["ask:report"]  # the last one
    assert patched["generate:2"] == patched["generate"]
    (window,) = patched["ask:end_window"]
    assert whole_steps(report["calls"] - window["tasks"][TASK]["calls"])
    assert all(not site["bypassed"] for site in report["patch"]["sites"])


def test_a_report_is_written_where_the_operator_said(patched, folder):
    written = json.loads((folder / "reports" / "vllm-target-rank0.json").read_text())
    assert written["state"] == "patched"
    assert written["digest"]


def test_a_live_patch_of_another_process_is_refused_with_the_ways_out(patched):
    (refusal,) = (v["error"] for k, v in patched.items() if k.startswith("patch:"))
    assert "other processes" in refusal
    assert "VLLM_ENABLE_V1_MULTIPROCESSING=0" in refusal
    assert "FASTKERNELS_CANDIDATES" in refusal


def test_a_wrong_candidate_keeps_the_engine_from_starting(engine, folder):
    ran = engine("generate", variables={"FASTKERNELS_CANDIDATES": str(norm(folder / "wrong", factor=0.5))})
    assert ran.code != 0
    assert ran.results == {}
    assert "candidate L1/rms_norm.py is off by" in ran.log
    assert "FASTKERNELS_ON_ERROR=serve would start it unpatched" in ran.log


def test_without_verification_a_wrong_candidate_changes_tokens(engine, folder, watched):
    variables = {"FASTKERNELS_CANDIDATES": str(norm(folder / "wrong", factor=0.5)), "FASTKERNELS_VERIFY": "0"}
    ran = engine("generate", "ask:report", variables=variables | IN_PROCESS)
    assert ran.results["ask:report"][0]["state"] == "patched"
    assert ran.results["generate"] != watched["generate"]


def test_an_engine_told_to_serve_does_so_unpatched_and_says_why(engine, folder, watched):
    raises = norm(folder / "raises", before="raise OSError('no such device')\n")
    variables = {"FASTKERNELS_CANDIDATES": str(raises), "FASTKERNELS_ON_ERROR": "serve"}
    ran = engine("generate", "ask:report", variables=variables | IN_PROCESS)
    (report,) = ran.results["ask:report"]
    assert report["state"] == "unpatched"
    assert "no such device" in report["reason"]
    assert ran.results["generate"] == watched["generate"]
    assert "fastkernels_patched{engine=vllm,rank=0,model=target} 0" in ran.log


def test_no_site_at_all_keeps_the_engine_from_starting(engine, right):
    ran = engine(
        "generate", variables={"FASTKERNELS_CANDIDATES": str(right), "FASTKERNELS_SELECT": "no.such.*"} | IN_PROCESS
    )
    assert ran.code != 0
    assert "FASTKERNELS_SELECT=no.such.* chooses none of the 5 sites of LlamaForCausalLM" in ran.log


def test_a_bad_setting_ends_the_process_before_any_work(engine, right):
    ran = engine("generate", variables={"FASTKERNELS_CANDIDATES": str(right), "FASTKERNELS_VERIFY": "yes"} | IN_PROCESS)
    assert ran.code != 0
    assert "FASTKERNELS_VERIFY=yes: it takes 0, 1" in ran.log
    assert "Loading safetensors" not in ran.log


def test_a_folder_that_is_not_there_is_seen_before_the_model_is_loaded(engine):
    ran = engine("generate", variables={"FASTKERNELS_CANDIDATES": "/no/such/folder"} | IN_PROCESS)
    assert ran.code != 0
    assert "/no/such/folder is not a folder" in ran.log
    assert "Loading safetensors" not in ran.log


def test_the_null_arm_runs_the_original_through_our_dispatchers(engine, patched, folder, watched):
    sites = folder / "sites.json"
    sites.write_text(json.dumps(patched["ask:sites"][0]))
    variables = {"FASTKERNELS_CANDIDATES": "identity", "FASTKERNELS_SITES": str(sites)}
    ran = engine("generate", "ask:report", variables=variables | IN_PROCESS)
    (report,) = ran.results["ask:report"]
    assert (report["dispatchers"], report["calls"]) == (NORMS, NORMS * TOKENS)
    assert ran.results["generate"] == watched["generate"]


def test_a_live_patch_runs_in_an_eager_engine_of_this_process(engine, right, watched):
    ran = engine("generate", f"patch:{right}", "generate:2", variables=IN_PROCESS)
    assert ran.results[f"patch:{right}"] == {"tokens": watched["generate"], "calls": NORMS * TOKENS}
    assert ran.results["generate:2"] == watched["generate"]


def test_both_ranks_of_two_stand_and_report(engine, right, watched):
    variables = {"FASTKERNELS_CANDIDATES": str(right)} | TWO_RANKS
    ran = engine("generate", "ask:report", variables=variables, tensor_parallel_size=2)
    reports = ran.results["ask:report"]
    assert [(r["rank"], r["world_size"], r["state"]) for r in reports] == [(0, 2, "patched"), (1, 2, "patched")]
    assert len({r["pid"] for r in reports} | {ran.results["pid"]}) == 3
    assert reports[0]["calls"] == reports[1]["calls"]
    assert whole_steps(reports[0]["calls"])
    assert ran.results["generate"] == watched["generate"]
