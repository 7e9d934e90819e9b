"""The entry point and the asking side without an engine: what they do where nothing is asked, or something is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastkernels.errors import ServingError
from fastkernels.serving.settings import Settings
from fastkernels.serving.sglang_client import gather
from fastkernels.serving.sglang_hooks import install

SCRIPT = """
import sys
from fastkernels.serving.sglang_plugin import register
register()
register()
print(sorted({"torch", "sglang"} & set(sys.modules)))
"""


def registered(**asked):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTKERNELS_")} | asked
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)


def test_where_nothing_is_asked_it_imports_nothing():
    done = registered()
    assert (done.returncode, done.stdout.strip()) == (0, "[]")


def test_a_setting_that_nobody_knows_ends_the_process():
    """SystemExit: any other exception SGLang would log, and start unpatched."""
    done = registered(FASTKERNELS_CANDIDATE="typo")
    assert done.returncode == 1
    assert "FASTKERNELS_CANDIDATE is no setting" in done.stderr and "The engine does not start" in done.stderr


def test_with_on_error_serve_the_same_is_an_error_in_the_log():
    done = registered(FASTKERNELS_CANDIDATE="typo", FASTKERNELS_ON_ERROR="serve")
    assert done.returncode == 0
    assert "FASTKERNELS_CANDIDATE is no setting" in done.stderr
    assert "fastkernels_patched{engine=sglang} 0" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is there")
def test_an_engine_that_it_cannot_enter_ends_the_process():
    done = registered(FASTKERNELS_WATCH="1")
    assert done.returncode == 1 and "No module named 'sglang'" in done.stderr


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not in this environment")
def test_a_place_that_is_not_there_is_refused_where_the_engines_own_hooks_would_go_on_without(monkeypatch):
    """The trap: SGLang's registry logs a hook that does not take, and its engine starts. Ours are put in whole."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    monkeypatch.delattr(Engine, "_launch_subprocesses")
    before = dict(vars(ModelRunner))
    HookRegistry.register("sglang.srt.entrypoints.engine.Engine._launch_subprocesses", print, HookType.AFTER)
    try:
        HookRegistry.apply_hooks()
    finally:
        HookRegistry.reset()
    with pytest.raises(ServingError, match=r"has no Engine\._launch_subprocesses, at which fastkernels enters. Use a"):
        install(Settings(watch=True))
    assert dict(vars(ModelRunner)) == before


def answering(*told):
    def send(folder):
        for rank, content in enumerate(told):
            if content is not None:
                Path(folder, f"{rank}.json").write_text(json.dumps(content))

    return send


def test_answers_come_by_rank():
    send = answering({"answers": ["a"]}, {"answers": ["b", "draft"]})
    assert gather(send, verb="fastkernels_report", ranks=2) == ["a", "b", "draft"]


def test_a_rank_that_does_not_answer_is_named():
    with pytest.raises(ServingError, match=r"fastkernels_report: no answer in 0 s from rank 1 of 2"):
        gather(answering({"answers": ["a"]}, None), verb="fastkernels_report", ranks=2, patience_s=0.1)


def test_what_a_rank_refuses_is_raised_with_its_name():
    send = answering({"answers": [""]}, {"error": "ServingError: a window is open already"})
    with pytest.raises(ServingError, match="rank 1: ServingError: a window is open already"):
        gather(send, verb="fastkernels_start_window", ranks=2)
