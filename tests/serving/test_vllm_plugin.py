"""The entry point itself: vLLM calls it in each process of every user who has fastkernels installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastkernels
from fastkernels.errors import ServingError
from fastkernels.serving import vllm_hooks
from fastkernels.serving.vllm_plugin import register

INHERITED = {k: v for k, v in os.environ.items() if not k.startswith("FASTKERNELS_")}


def test_without_settings_it_imports_nothing_and_does_nothing():
    imported = "sorted({'torch', 'vllm', 'transformers', 'pydantic', 'numpy'} & set(sys.modules))"
    code = f"import sys; from fastkernels.serving.vllm_plugin import register; register(); print({imported})"
    done = subprocess.run([sys.executable, "-c", code], env=INHERITED, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bad_setting_is_raised_for_vllm_ends_a_process_whose_plugin_raises(monkeypatch):
    monkeypatch.setenv("FASTKERNELS_ON_ERROR", "never")
    with pytest.raises(ServingError, match="FASTKERNELS_ON_ERROR=never: it takes stop, serve"):
        register()


def test_with_on_error_serve_the_same_is_an_error_in_the_log_and_the_process_goes_on():
    code = "from fastkernels.serving.vllm_plugin import register; register()"
    asked = {"FASTKERNELS_CANDIDATE": "typo", "FASTKERNELS_ON_ERROR": "serve"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=INHERITED | asked, stderr=subprocess.PIPE, text=True, check=True
    )
    assert "FASTKERNELS_CANDIDATE is no setting" in done.stderr
    assert "The engine serves unpatched." in done.stderr
    assert "fastkernels_patched{engine=vllm} 0" in done.stderr


def test_a_hook_goes_around_once_however_often_it_is_put_in():
    class Owner:
        def ask(self):
            return ["original"]

    def hook(original, owner):
        return ["hook", *original(owner)]

    vllm_hooks._around(Owner, "ask", hook)
    vllm_hooks._around(Owner, "ask", hook)
    assert Owner().ask() == ["hook", "original"]


def test_every_public_name_is_there_when_asked_for():
    assert all(getattr(fastkernels, name) is not None for name in fastkernels.__all__)
    assert set(fastkernels.__all__) <= set(dir(fastkernels))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastkernels.nothing


@pytest.mark.engine
def test_a_vllm_without_one_of_our_places_is_refused_and_left_without_the_others(monkeypatch):
    pytest.importorskip("vllm")
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    monkeypatch.delattr(Executor, "get_kv_cache_specs")
    with pytest.raises(ServingError, match=r"has no Executor\.get_kv_cache_specs, at which .* Use a version"):
        vllm_hooks.install()
    assert not hasattr(WorkerWrapperBase.init_device, vllm_hooks.MARK)
