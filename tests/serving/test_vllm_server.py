"""``fastkernels serve --engine vllm``: a real server, an OpenAI client, and the report of its workers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.engines.tiny import make
from tests.serving.candidates import norm
from tests.serving.vllm_driver import EAGER, environment

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
    pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="vLLM's server cannot run here: no uvicorn"),
]

ARGUMENTS = (
    *("--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len", "128"),
    *("--max-num-seqs", "4", "--no-enable-prefix-caching", "--host", "127.0.0.1"),
)
STARTED_IN = 240  # seconds, on a machine that does something else too


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@contextlib.contextmanager
def serving(folder, *options):
    """A server's address and process; on SIGTERM it ends, as an operator's supervisor expects."""
    port = free_port()
    model = make(folder / "models", "llama")
    command = [sys.executable, "-P", "-m", "fastkernels.cli.main", "serve", *options, str(model)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--", *ARGUMENTS, "--port", str(port)],
            cwd=folder,
            env=environment(folder / "cache", **EAGER),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def wait_for(url, process, log):
    end = time.monotonic() + STARTED_IN
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"no server after {STARTED_IN} s: {log.read_text()}")


def got(url, **request):
    with urllib.request.urlopen(urllib.request.Request(url, **request), timeout=30) as answer:
        return json.loads(answer.read())


def test_a_client_is_served_by_the_candidate_and_told_what_stands(folder):
    import openai

    with serving(folder, "--candidates", str(norm(folder / "right"))) as (address, process):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        before = got(f"{address}/fastkernels/report")["workers"]
        whole = {"model": "tiny", "max_tokens": 4, "temperature": 0, "extra_body": {"ignore_eos": True}}
        completed = client.completions.create(prompt=[5, 6, 7], **whole)
        chat = client.chat.completions.create(messages=[{"role": "user", "content": "hello"}], **whole)
        (report,) = got(f"{address}/fastkernels/report")["workers"]
        with pytest.raises(urllib.error.HTTPError, match="405"):
            got(f"{address}/fastkernels/report", data=b"{}", method="POST")
    assert completed.usage.completion_tokens == chat.usage.completion_tokens == 4
    assert [r["state"] for r in before] == ["patched"]
    assert report["pid"] != process.pid
    assert report["calls"] >= before[0]["calls"] + 8 * 5  # two requests of four steps through five norms
    assert {site["state"] for site in report["patch"]["sites"] if site["task"] == "rms_norm"} == {"applied"}
    assert "class RMSNorm" not in json.dumps(report)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_wrong_candidate_is_a_server_that_does_not_start(folder):
    with (
        pytest.raises(AssertionError, match=r"candidate L1/rms_norm.py is off by"),
        serving(folder, "--candidates", str(norm(folder / "wrong", factor=0.5))),
    ):
        pass
