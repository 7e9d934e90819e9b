"""The plugin in real SGLang engines on a CPU, each in processes of its own: ``make engine-test``."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.engines.tiny import make
from tests.serving.sglang_candidates import norm
from tests.serving.sglang_driver import ARGUMENTS, LONG, TOKENS, TWO_RANKS, environment, finish, run

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not in this environment"),
]

NORMS = 5  # of the tiny Llama: two a layer, and the last
TASK = "rms_norm"
START_S = 300
CHUNK = 16  # tokens of a prefill's step


def steps(tokens=TOKENS, *, times=1):
    """Calls of the candidates in that many requests: one a norm and token, or of one token more."""
    return [times * NORMS * tokens + more * NORMS for more in range(times + 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sglang")


@pytest.fixture(scope="module")
def model(folder):
    return make(folder / "models", "llama")


@pytest.fixture(scope="module")
def engine(model):
    def start(*steps, variables, **arguments):
        return run(*steps, model=model, variables=variables, **arguments)

    return start


@pytest.fixture(scope="module")
def right(folder):
    return norm(folder / "right")


@pytest.fixture(scope="module")
def wrong(folder):
    return norm(folder / "wrong", factor=0.5)


@pytest.fixture(scope="module")
def watched(engine):
    """Without candidates: what SGLang itself does, told by our verbs."""
    steps = ("generate", "ask:report", "ask:sites", "ask:start_window", "long")
    ran = engine(*steps, variables={"FASTKERNELS_WATCH": "1"}, chunked_prefill_size=CHUNK)
    assert ran.code == 0, ran.log
    return ran.results


@pytest.fixture(scope="module")
def patched(engine, right, folder):
    ran = engine(
        "ask:start_window",
        "generate",
        "ask:end_window",
        "ask:end_window:again",
        "ask:report",
        "ask:sites",
        "reload",
        "generate:2",
        "ask:report:2",
        "long",
        "ask:report:long",
        variables={"FASTKERNELS_CANDIDATES": str(right), "FASTKERNELS_REPORT_DIR": str(folder / "reports")},
        chunked_prefill_size=CHUNK,
    )
    assert ran.code == 0, ran.log
    return ran.results


def test_a_watched_engine_is_not_touched_and_tells_so(watched):
    (report,) = watched["ask:report"]
    assert (report["state"], report["dispatchers"], report["patch"]) == ("watching", 0, None)
    assert watched["ask:sites"] == [[]]
    assert "nothing is patched here" in watched["ask:start_window"]["error"]
    assert report["compilation"] == "eager"


def test_a_right_candidate_runs_in_the_schedulers_process_and_changes_no_token(patched, watched):
    (report,) = patched["ask:report"]
    assert report["pid"] != patched["pid"]
    assert (report["state"], report["dispatchers"]) == ("patched", NORMS)
    assert report["calls"] in steps()
    assert patched["generate"] == watched["generate"]


def test_a_window_around_requests_proves_that_it_ran(patched):
    (window,) = patched["ask:end_window"]
    (report,) = patched["ask:report"]
    evidence = window["tasks"][TASK]
    assert evidence["proven"] and evidence["calls"] == report["calls"] in steps()
    assert window["pid"] == report["pid"]
    assert [task for _, task in patched["ask:sites"][0]] == [TASK] * NORMS


def test_a_window_that_was_not_opened_is_an_error_to_who_asked(patched):
    assert "rank 0: ServingError" in patched["ask:end_window:again"]["error"]


def test_it_still_runs_after_weights_were_reloaded_and_from_cached_prefixes(patched):
    (report,) = patched["ask:report:2"]
    assert patched["generate:2"] == patched["generate"]
    assert report["calls"] in steps(times=2)
    assert all(not site["bypassed"] for site in report["patch"]["sites"])


def test_prompts_that_are_prefilled_in_chunks_get_the_same_tokens(patched, watched):
    (before,), (after,) = patched["ask:report:2"], patched["ask:report:long"]
    assert patched["long"] == watched["long"]
    chunks = sum(map(len, LONG)) // CHUNK
    assert after["calls"] - before["calls"] >= NORMS * (chunks + TOKENS - 1)


def test_a_report_is_written_where_the_operator_said(patched, folder):
    written = json.loads((folder / "reports" / "sglang-target-rank0.json").read_text())
    assert written["state"] == "patched" and written["digest"]


def test_a_wrong_candidate_keeps_the_engine_from_starting(engine, wrong):
    ran = engine("generate", variables={"FASTKERNELS_CANDIDATES": str(wrong)})
    assert ran.code != 0 and ran.results == {}
    assert "candidate L1/rms_norm.py is off by" in ran.log
    assert "FASTKERNELS_ON_ERROR=serve would start it unpatched" in ran.log


def test_unverified_a_wrong_candidate_changes_tokens(engine, wrong, watched):
    ran = engine("generate", "ask:report", variables={"FASTKERNELS_CANDIDATES": str(wrong), "FASTKERNELS_VERIFY": "0"})
    assert ran.code == 0, ran.log
    (report,) = ran.results["ask:report"]
    assert report["calls"] in steps()
    assert ran.results["generate"] != watched["generate"]


def test_a_folder_that_is_not_there_is_an_exception_of_the_engines_caller(engine, folder):
    """Before a scheduler is launched, which would kill the caller."""
    ran = engine("generate", variables={"FASTKERNELS_CANDIDATES": str(folder / "nowhere")})
    assert ran.code == 1 and ran.results == {}
    assert "ServingError: FASTKERNELS_CANDIDATES=" in ran.log and "is not a folder" in ran.log


@pytest.mark.slow
def test_candidates_that_apply_nowhere_keep_the_engine_from_starting(engine, right):
    ran = engine("generate", variables={"FASTKERNELS_CANDIDATES": str(right), "FASTKERNELS_SELECT": "no.such.*"})
    assert ran.code != 0 and ran.results == {}
    assert "FASTKERNELS_SELECT=no.such.* chooses none of the 5 sites of LlamaForCausalLM" in ran.log


@pytest.mark.slow
def test_with_on_error_serve_it_serves_unpatched_and_says_why(engine, wrong, watched):
    variables = {"FASTKERNELS_CANDIDATES": str(wrong), "FASTKERNELS_ON_ERROR": "serve"}
    ran = engine("generate", "ask:report", variables=variables)
    assert ran.code == 0, ran.log
    (report,) = ran.results["ask:report"]
    assert (report["state"], report["dispatchers"]) == ("unpatched", 0)
    assert "L1/rms_norm.py is off by" in report["reason"]
    assert "fastkernels_patched{engine=sglang,rank=0,model=target} 0" in ran.log
    assert ran.results["generate"] == watched["generate"]


def test_every_rank_is_patched_and_proven(engine, right, watched):
    ran = engine(
        "ask:start_window",
        "generate",
        "ask:end_window",
        "ask:report",
        variables={"FASTKERNELS_CANDIDATES": str(right)} | TWO_RANKS,
        tp_size=2,
    )
    assert ran.code == 0, ran.log
    reports = ran.results["ask:report"]
    assert [(r["rank"], r["world_size"], r["state"]) for r in reports] == [(0, 2, "patched"), (1, 2, "patched")]
    assert len({ran.results["pid"], *(r["pid"] for r in reports)}) == 3
    assert all(w["tasks"][TASK]["calls"] in steps() for w in ran.results["ask:end_window"])
    assert ran.results["generate"] == watched["generate"]


@pytest.mark.slow
def test_an_engine_that_left_us_out_says_so_when_it_is_asked(engine, right):
    variables = {"FASTKERNELS_CANDIDATES": str(right), "SGLANG_PLUGINS": "other"}
    ran = engine("ask:report", variables=variables)
    assert ran.code == 0, ran.log
    assert "leave fastkernels in SGLANG_PLUGINS" in ran.results["ask:report"]["error"]


@pytest.fixture(scope="module")
def server(model, right, folder):
    """An HTTP server with the candidate, as an operator starts one: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = []
    for name, value in (ARGUMENTS | {"port": port, "host": "127.0.0.1", "skip_server_warmup": True}).items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    command = ["serve", "--engine", "sglang", "--candidates", str(right), str(model), "--", *flags]
    log = folder / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastkernels.cli.main", *command],
            cwd=folder,
            env=environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{address}/health", log)
        yield address
    finally:
        process.kill()
        finish(process, 30)


def _wait(process, url, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise AssertionError(f"no answer in {START_S} s: {log.read_text()}")


def _report(server):
    with urllib.request.urlopen(f"{server}/fastkernels/report", timeout=60) as reply:
        return json.load(reply)["workers"]


def test_an_openai_client_is_served_by_the_candidate(server):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    (before,) = _report(server)
    reply = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=6, temperature=0
    )
    (after,) = _report(server)
    assert reply.usage.completion_tokens == 6
    assert (after["state"], after["dispatchers"]) == ("patched", NORMS)
    assert after["calls"] - before["calls"] in steps(6)
